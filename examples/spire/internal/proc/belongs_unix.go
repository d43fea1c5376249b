//go:build unix && !linux

package proc

import (
	"os/exec"
	"syscall"
)

// Belongs makes cmd, which is not started yet, a process group. There is no way
// here to have it die with us when we are killed.
func Belongs(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}
