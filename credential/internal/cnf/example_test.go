package cnf_test

import (
	"fmt"

	"github.com/taskcred/taskcred/credential/internal/cnf"
	"github.com/taskcred/taskcred/internal/object"
)

func Example() {
	o, err := object.Parse([]byte(`{"jkt":"0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}`))
	if err != nil {
		panic(err)
	}
	fmt.Println(cnf.Read(len(o), o.Text))
	// Output: jkt 0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I
}
