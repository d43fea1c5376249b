//go:build unix

package apache

import (
	"net"
	"net/http"
	"sync/atomic"
)

// keyServer gives Apache the keys of whom it trusts. They are not known yet when
// Apache starts: its URLs are, as resources, in the configuration of the
// authorization server, whose keys they are. The module takes them from a URL
// alone, and from an https one only if the system's roots vouch for it.
type keyServer struct {
	set  atomic.Pointer[[]byte]
	url  string
	http *http.Server
}

func startKeyServer() (*keyServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	k := &keyServer{url: "http://" + l.Addr().String() + "/jwks"}
	k.http = &http.Server{Handler: k}
	go k.http.Serve(l)
	return k, nil
}

func (k *keyServer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	set := k.set.Load()
	if set == nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/jwk-set+json")
	_, _ = w.Write(*set)
}

func (k *keyServer) close() {
	if k != nil {
		k.http.Close()
	}
}
