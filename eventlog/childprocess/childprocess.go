// Package childprocess starts a server as a child process. On Linux the child ends when
// this process ends, even if this process is killed.
package childprocess

import (
	"os/exec"
	"runtime"
)

// Start starts cmd and returns when it runs. cmd.SysProcAttr must come from Attributes.
// After the child has ended, Start's goroutine calls ended once, with the result of
// cmd.Wait. It does not call ended if Start fails.
func Start(cmd *exec.Cmd, ended func(error)) error {
	started := make(chan error, 1)
	go func() {
		// Linux sends the parent-death signal when the thread that started the
		// child ends, not when the process ends. So this goroutine keeps the thread
		// until the child has ended.
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
