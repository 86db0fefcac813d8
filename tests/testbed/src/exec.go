package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/creack/pty"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// ExecInContainer runs a command on this machine, in the pod's folder, with POD_NAME,
// POD_NAMESPACE, CONTAINER and LOG (the container's log file) set. Its exit code reaches the client.
func (k kubelet) ExecInContainer(_ context.Context, pod, _, container string, args []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	// Pdeathsig below means the death of the thread that forks; locked, the thread lives as long as this call.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	log := k.log(pod, container) // makes the pod's folder too
	namespace, name, _ := strings.Cut(pod, "_")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = k.path(pod)
	cmd.Env = append(os.Environ(), "POD_NAMESPACE="+namespace, "POD_NAME="+name, "CONTAINER="+container, "LOG="+log, "HOME="+cmd.Dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // no command outlives a killed kubelet
	if tty {
		return exitCode(runOnTerminal(cmd, in, out, resize))
	}
	return exitCode(runOnPipes(cmd, in, out, errOut))
}

func runOnTerminal(cmd *exec.Cmd, in io.Reader, out io.Writer, resize <-chan remotecommand.TerminalSize) error {
	terminal, err := pty.Start(cmd)
	if err != nil {
		return err
	}
	defer terminal.Close()
	go func() {
		for size := range resize {
			_ = pty.Setsize(terminal, &pty.Winsize{Rows: size.Height, Cols: size.Width})
		}
	}()
	if in != nil {
		go func() { _, _ = io.Copy(terminal, in) }()
	}
	_, _ = io.Copy(out, terminal) // ends with EIO when the last process on the terminal is gone
	return cmd.Wait()
}

func runOnPipes(cmd *exec.Cmd, in io.Reader, out, errOut io.Writer) error {
	// An absent stream arrives as a nil interface; to hand it to cmd as it is would be fine too, but not a typed nil.
	if out != nil {
		cmd.Stdout = out
	}
	if errOut != nil {
		cmd.Stderr = errOut
	}
	if in != nil {
		// A pipe of our own, not cmd.Stdin: Wait would wait for the client to end its stdin.
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(stdin, in)
			stdin.Close() // the command sees the end of its input
		}()
	}
	return cmd.Run()
}

// exitCode turns the error of a command into the one that the streaming server sends on as an exit code.
func exitCode(err error) error {
	var exited *exec.ExitError
	switch {
	case errors.As(err, &exited):
		code := exited.ExitCode()
		if code < 0 { // as a shell reports a signal
			code = 128 + int(exited.Sys().(syscall.WaitStatus).Signal())
		}
		return utilexec.CodeExitError{Err: err, Code: code}
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return utilexec.CodeExitError{Err: err, Code: 127}
	}
	return err
}
