package transport_test

import (
	"fmt"

	"github.com/taskcred/taskcred/internal/transport"
)

func Example() {
	t := transport.New()
	t.MaxIdleConnsPerHost = 64 // bursts of agents
	fmt.Println(t.Proxy == nil, t.TLSHandshakeTimeout)
	// Output: true 10s
}
