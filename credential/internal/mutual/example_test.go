package mutual_test

import (
	"crypto/tls"
	"fmt"
	"net/http"

	"github.com/taskcred/taskcred/credential/internal/mutual"
)

func Example() {
	cert := &tls.Certificate{Certificate: [][]byte{[]byte("first")}}
	pool := mutual.NewPool(&http.Transport{}, func() *tls.Certificate { return cert })
	first, _ := pool.Current()
	cert = &tls.Certificate{Certificate: [][]byte{[]byte("second")}}
	_, replaced := pool.Current()
	fmt.Println(replaced == first, first.Stale())
	// Output: true true
}
