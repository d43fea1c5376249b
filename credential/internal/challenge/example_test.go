package challenge_test

import (
	"fmt"
	"net/http"

	"github.com/taskcred/taskcred/credential/internal/challenge"
)

func Example() {
	h := http.Header{"Www-Authenticate": {`Bearer realm="a, b", DPoP error="use_dpop_nonce"`}}
	for c := range challenge.All(h) {
		fmt.Println(c.Scheme, c.Params)
	}
	// Output:
	// bearer map[realm:a, b]
	// dpop map[error:use_dpop_nonce]
}
