package challenge_test

import (
	"fmt"

	"github.com/taskcred/taskcred/credential/internal/challenge"
)

func Example() {
	for _, c := range challenge.Parse(`Bearer realm="a, b", DPoP error="use_dpop_nonce"`) {
		fmt.Println(c.Scheme, c.Params)
	}
	// Output:
	// bearer map[realm:a, b]
	// dpop map[error:use_dpop_nonce]
}
