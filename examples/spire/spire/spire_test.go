//go:build unix

package spire_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskcred/taskcred/examples/spire/spire"
	"github.com/taskcred/taskcred/identity/workload"
)

func TestMain(m *testing.M) {
	if os.Getenv("SPIRE_TEST_START") != "" {
		startAndWait()
	}
	os.Exit(m.Run())
}

// startAndWait is a program that starts SPIRE, says where, and waits.
func startAndWait() {
	s, err := spire.Start(context.Background(), nil)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(s.WorkloadAPI())
	select {}
}

func need(t *testing.T) {
	t.Helper()
	const how = "SPIRE is not built; to do it, run: cd examples/spire && go run . -build"
	switch {
	case spire.Built():
	case os.Getenv("CI") != "":
		t.Fatal(how)
	default:
		t.Skip(how)
	}
}

// Two that start at once do not collide, and Close leaves nothing.
func TestSeveral(t *testing.T) {
	need(t)
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			s, err := spire.Start(t.Context(), nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			if _, err := s.Register(t.Context(), spire.Entry{Path: "/agent"}); err != nil {
				t.Error(err)
				return
			}
			self, err := workload.Open(t.Context(), &workload.Options{Address: s.WorkloadAPI()})
			if err != nil {
				t.Error(err)
				return
			}
			if self.ID() != s.ID("/agent") {
				t.Errorf("got %v", self.ID())
			}
			self.Close()
			s.Close()
			gone(t, s.WorkloadAPI())
		})
	}
	all.Wait()
}

// What a context that has ended started, or half of it, is stopped.
func TestCancelled(t *testing.T) {
	need(t)
	before := running(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if s, err := spire.Start(ctx, nil); err == nil {
		s.Close()
		t.Skip("it was quicker than this test")
	}
	if after := running(t); after > before {
		t.Errorf("%d programs of SPIRE run that did not before", after-before)
	}
}

// Not even a program that is killed leaves SPIRE behind.
func TestKilled(t *testing.T) {
	need(t)
	if _, err := os.Stat("/proc/self"); err != nil {
		t.Skip("only Linux ends children with their parent")
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SPIRE_TEST_START=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	addr := strings.TrimSpace(line)
	if err != nil || !strings.HasPrefix(addr, "unix://") {
		t.Fatalf("%q, %v", line, err)
	}
	path := strings.TrimPrefix(addr, "unix://")
	defer os.RemoveAll(filepath.Dir(filepath.Dir(path)))
	if c, err := net.Dial("unix", path); err != nil {
		t.Fatal(err)
	} else {
		c.Close()
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	gone(t, addr)
}

// gone reports an error unless, soon, nobody answers at addr.
func gone(t *testing.T, addr string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("unix", strings.TrimPrefix(addr, "unix://"))
		if err != nil {
			return
		}
		c.Close()
	}
	t.Errorf("an agent answers at %s", addr)
}

// running counts the programs of SPIRE that are children of this process.
func running(t *testing.T) (n int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended meanwhile
		}
		var pid, parent int
		var name, state string
		if _, err := fmt.Sscan(string(text), &pid, &name, &state, &parent); err == nil && parent == os.Getpid() && state != "Z" {
			n++
		}
	}
	return n
}
