// Package childprocess starts a server as a child that ends when this process
// ends, however it ends.
package childprocess

import (
	"os/exec"
	"runtime"
)

// Start starts cmd, whose SysProcAttr comes from Attributes, and returns when
// it runs. When the child has ended and has been reaped, ended is called once,
// with what cmd.Wait returned; it is not called when Start fails.
func Start(cmd *exec.Cmd, ended func(error)) error {
	started := make(chan error, 1)
	go func() {
		// Linux sends the parent-death signal when the thread that started the
		// child ends, not when the process does. So the thread stays until the
		// child has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended(cmd.Wait())
		}
	}()
	return <-started
}
