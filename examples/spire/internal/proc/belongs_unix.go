//go:build unix && !linux

package proc

import (
	"os/exec"
	"syscall"
)

// Belongs makes cmd, which is not started yet, a process group. There is no way
// here to have it die with us when we are killed. What else cmd.SysProcAttr says
// is kept.
func Belongs(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Setpgid = true
}
