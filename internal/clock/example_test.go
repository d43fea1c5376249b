package clock_test

import (
	"fmt"
	"time"

	"github.com/taskcred/taskcred/internal/clock"
)

func Example() {
	now := clock.Now()
	deadline := now.Add(time.Minute)
	fmt.Println(now.Reached(deadline), now.Until(deadline))
	// Output: false 1m0s
}
