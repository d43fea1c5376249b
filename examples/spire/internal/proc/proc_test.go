//go:build unix

package proc_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/taskcred/taskcred/examples/spire/internal/proc"
)

// Stop ends what the program started as well.
func TestStop(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sleep 300 & echo $!; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := proc.Start("sh", filepath.Join(t.TempDir(), "log"), cmd)
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	p.Stop(syscall.SIGTERM)
	p.Stop(syscall.SIGTERM) // again: nothing
	for end := time.Now().Add(5 * time.Second); alive(child); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the child runs on")
		}
	}
	(*proc.Process)(nil).Stop(syscall.SIGTERM)
}

// alive reports whether a process runs. One that has ended and that nobody has
// asked about is there, too, but does not.
func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return syscall.Kill(pid, 0) == nil && (err != nil || !strings.Contains(string(stat), ") Z "))
}

// Wait says what a program that has ended wrote last.
func TestWait(t *testing.T) {
	p, err := proc.Start("sh", filepath.Join(t.TempDir(), "log"), exec.Command("sh", "-c", "echo address already in use >&2"))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop(syscall.SIGTERM)
	err = p.Wait(t.Context(), func(context.Context) error { return errors.New("not yet") })
	if !proc.PortTaken(err) {
		t.Errorf("got %v", err)
	}
}

// One of two has the lock; the other is told, waits, and can give up.
func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := proc.Lock(t.Context(), path, func() { t.Error("there is nobody to wait for") })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := proc.Lock(ctx, path, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	unlock2, err := proc.Lock(t.Context(), path, unlock)
	if err != nil {
		t.Fatal(err)
	}
	unlock2()
}
