package header_test

import (
	"fmt"
	"net/http"

	"github.com/taskcred/taskcred/credential/internal/header"
)

func Example() {
	theirs := http.Header{"Accept": {"application/json"}, "x_api_key": {"theirs"}}
	var room [1]string
	fmt.Println(header.WithCredential(theirs, room[:], "Bearer ours"))
	// Output: map[Accept:[application/json] Authorization:[Bearer ours]]
}
