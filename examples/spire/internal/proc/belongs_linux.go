package proc

import (
	"os/exec"
	"syscall"
)

// Belongs makes cmd, which is not started yet, a process group that dies with us,
// however we die. What else cmd.SysProcAttr says is kept.
func Belongs(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
}
