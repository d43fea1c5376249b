package workload_test

import (
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/taskcred/taskcred/identity/identitytest"
	"github.com/taskcred/taskcred/identity/workload"
)

// A proxy would see our private keys: the Workload API is not encrypted.
func TestTCPAddressIsNotReachedThroughAProxy(t *testing.T) {
	_, agent := newAgent(t, identitytest.SVID{Path: "/agent"})
	host := hostIP(t)
	address := listen(t, host, func(conn net.Conn) {
		up, err := net.Dial("unix", strings.TrimPrefix(agent.Addr(), "unix://"))
		if err != nil {
			_ = conn.Close()
			return
		}
		go func() { _, _ = io.Copy(up, conn); _ = up.Close() }()
		_, _ = io.Copy(conn, up)
		_ = conn.Close()
	})
	var proxied atomic.Int32
	proxy := listen(t, "127.0.0.1", func(conn net.Conn) { proxied.Add(1); _ = conn.Close() })
	t.Setenv("HTTPS_PROXY", "http://"+proxy)
	t.Setenv("NO_PROXY", "")

	self, err := workload.Open(t.Context(), &workload.Options{Address: "tcp://" + address})
	if n := proxied.Load(); n > 0 {
		t.Errorf("the proxy saw %d connections", n)
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = self.Close()
}

// listen accepts connections on host until the test ends, and returns where.
func listen(t *testing.T, host string, serve func(net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	}()
	return listener.Addr().String()
}

// hostIP returns an address of this machine that is not loopback, for which no
// proxy would be used anyway.
func hostIP(t *testing.T) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && ip.IP.IsGlobalUnicast() {
			return ip.IP.String()
		}
	}
	t.Skip("SKIPPED: this machine has no address but loopback, and Go uses no proxy for that")
	return ""
}
