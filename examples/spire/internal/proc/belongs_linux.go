package proc

import (
	"os/exec"
	"syscall"
)

// Belongs makes cmd, which is not started yet, a process group that dies with us,
// however we die.
func Belongs(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
