// Command uffdpager runs the pager on a real file and says what this machine
// can do for it.
//
//	uffdpager run [FILE]    page a file that is larger than the budget, and report
//	uffdpager compare       the same reads through mmap, pread and others as well
//	uffdpager doctor        what works here, what will be used, what will hurt
//
// Standard output is for reports; with --json it holds exactly one JSON object.
// Progress, notes and errors go to standard error.
//
// Exit status: 0 done, 1 the work failed (one line says what and where), 2
// wrong usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/uffdpager/uffdpager/uffd"
)

const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// secondSignal is how long after the first signal another one counts as a second one.
const secondSignal = 500 * time.Millisecond

// usageError is a command line that makes no sense.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// errReported is the error of a command that failed and has said all there is
// to say already.
var errReported = errors.New("reported")

func main() {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // by nohup(1), say
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	// The first Ctrl-C ends the work, with its report. A moment later signals have
	// their usual effect: the second one kills. Not at once, for one signal may come
	// twice: timeout(1) sends it to the process and then to its group.
	context.AfterFunc(ctx, func() { time.AfterFunc(secondSignal, stop) })
	os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// execute is the program without its process: it runs a command line and
// returns the exit status.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		PersistentPreRunE: func(*cobra.Command, []string) error {
			// A mask that is misspelt would test something else than was meant.
			if err := uffd.MaskError(); err != nil {
				return usageError{err}
			}
			return nil
		},
		Use:           "uffdpager",
		Short:         "Memory larger than memory: page faults served in user space",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SetOut(stderr)
			cmd.Help()
			return usagef("give a command: run, compare or doctor")
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(runCommand(stdout, stderr), doctorCommand(stdout), compareCommand(stdout, stderr), compareRowCommand(os.Stdin, stdout))

	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	status := exitFailed
	if errors.As(err, new(usageError)) {
		status = exitUsage
	}
	if !errors.Is(err, errReported) {
		fmt.Fprintf(stderr, "uffdpager: %v\n", err)
	}
	return status
}

// usageArgs makes the error of an argument check a usage error.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}
