package childprocess

import "syscall"

// Attributes returns the attributes of a child process. The kernel sends it the signal
// parentDied when this process ends. The child has a process group of its own, so that
// Ctrl-C in a terminal reaches only this process, which then stops the child in an
// orderly way.
func Attributes(parentDied syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: parentDied}
}
