//go:build unix

// Package proc runs other programs so that none of them outlives us.
package proc

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Process is a program that this one started and will stop.
type Process struct {
	name string
	cmd  *exec.Cmd
	log  string        // the file with all that it wrote
	done chan struct{} // closed when it has ended
}

// Start runs cmd in a process group of its own, so that a Ctrl-C in the terminal
// comes to us alone and we stop things in order. What it writes goes to the file
// log, except for a Stdout that cmd has.
func Start(name, log string, cmd *exec.Cmd) (*Process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the child has its own
	p := &Process{name: name, cmd: cmd, log: log, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = out
	}
	cmd.Stderr = out
	Belongs(cmd)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Stop ends the process and all that it started: by signal, after five seconds
// by force. It does nothing on nil and where the process has ended.
func (p *Process) Stop(signal syscall.Signal) {
	if p == nil {
		return
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, signal)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// Wait calls ready until it succeeds, for as long as p runs and ctx lasts, but no
// more than 30 seconds. Its error has the last lines that p wrote.
func (p *Process) Wait(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s has ended:\n%s", p.name, p.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w\n%s", p.name, err, p.lastWords())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (p *Process) lastWords() string {
	log, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return Tail(log)
}

// Output runs cmd, of exec.CommandContext, to its end and returns what it
// printed. When the context ends, all that it started ends with it. An error has
// the last lines of what it wrote.
func Output(cmd *exec.Cmd) ([]byte, error) {
	var errs strings.Builder
	cmd.Stderr = &errs
	Belongs(cmd)
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", cmd.Args[0], err, Tail(append(out, errs.String()...)))
	}
	return out, nil
}

// Tail returns the last lines of a log.
func Tail(log []byte) string {
	const most = 2 << 10
	if len(log) > most {
		log = log[len(log)-most:]
	}
	return strings.TrimSpace(string(log))
}

// PortTaken reports whether a program has ended because somebody else was
// quicker at a port that was free when it was chosen. Some write that with a
// capital letter.
func PortTaken(err error) bool {
	return err != nil && strings.Contains(strings.ToLower(err.Error()), "address already in use")
}
