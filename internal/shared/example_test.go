package shared_test

import (
	"context"
	"fmt"

	"github.com/taskcred/taskcred/internal/shared"
)

func Example() {
	c := shared.NewCall[string]()
	go c.Run(
		func() (string, error) { return "answer", nil },
		func(s string, err error) (string, error) { return s, err }, // keep it for later callers
	)
	if c.Wait(context.Background()) {
		fmt.Println(c.Result())
	}
	// Output: answer <nil>
}
