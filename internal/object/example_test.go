package object_test

import (
	"fmt"

	"github.com/taskcred/taskcred/internal/object"
)

func Example() {
	o, err := object.Parse([]byte(`{"sub":"alice","Sub":"bob"}`))
	fmt.Println(err, "-", o.Ambiguity("sub"))
	// Output: <nil> - the answer has a member in another case than sub
}
