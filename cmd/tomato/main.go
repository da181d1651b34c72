// Command tomato is the whole system in one binary: serve runs its roles, the
// rest are tools beside it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"tomato/cmd/tomato/bench"
	"tomato/cmd/tomato/settings"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/alecthomas/kong"
)

// Exit codes.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitPending = 3 // of migrate status: something is pending
)

type cli struct {
	Serve       serveCmd       `cmd:"" help:"Run the roles of this process."`
	Broker      brokerCmd      `cmd:"" help:"Run the embedded broker by itself."`
	Simulate    simulateCmd    `cmd:"" help:"Play customers, restaurants, riders and the gateway against a running serve."`
	Rebuild     rebuildCmd     `cmd:"" help:"Fill a new generation of a read model beside the serving one, and switch to it."`
	Projections projectionsCmd `cmd:"" help:"Look after the generations of the read models."`
	DLQ         dlqCmd         `cmd:"" name:"dlq" help:"Look at records that a consumer could not handle, replay or discard them."`
	Erase       eraseCmd       `cmd:"" help:"Forget a customer or a rider: destroy the keys of what is personal."`
	Keys        keysCmd        `cmd:"" help:"Look after the keys of what is personal."`
	Topics      topicsCmd      `cmd:"" help:"Create and verify the topics."`
	Token       tokenCmd       `cmd:"" help:"Print a token for development."`
	Tokens      tokensCmd      `cmd:"" help:"Revoke the tokens of somebody."`
	Bench       bench.Cmd      `cmd:"" help:"Measure, beside the physical limit of the same run."`
	Migrate     migrateCmd     `cmd:"" help:"Bring the database up to date, and show whether it is."`
	Version     versionCmd     `cmd:"" help:"Print the version."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	tuneMemory()
	os.Exit(run(ctx, os.Args[1:]))
}

// gcPercent lets the heap grow to five times of what is live before it is
// collected: a command makes some kilobytes of garbage, and with the default of
// 100 a quarter of the write side's work was collecting. memoryRatio is how much
// of the machine's (or the container's) memory the process may have before
// collecting goes before speed again.
const (
	gcPercent   = 400
	memoryRatio = 0.6
)

// tuneMemory sets the collector, unless GOGC or GOMEMLIMIT say how.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	_, _ = memlimit.Set(memlimit.WithRatio(memoryRatio), // without a limit where none can be known
		memlimit.WithProvider(memlimit.ApplyFallback(memlimit.FromCgroup, memlimit.FromSystem)))
}

// run parses args and runs the command. It returns the exit code.
func run(ctx context.Context, args []string) int {
	var c cli
	parser, err := kong.New(&c, kong.Name("tomato"), kong.Description("Event-sourced food delivery on Kafka and PostGIS."),
		kong.UsageOnError(), kong.BindTo(ctx, (*context.Context)(nil)), settings.SecretFiles(), helpVars)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tomato:", err)
		return exitFailed
	}
	if err := settings.HideSecrets(parser.Model.Node, args); err != nil {
		fmt.Fprintln(os.Stderr, "tomato:", err)
		return exitFailed
	}
	k, err := parser.Parse(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "tomato:", err)
		return exitUsage
	}
	err = k.Run()
	var usage settings.UsageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, "tomato:", err)
		return exitUsage
	case errors.Is(err, errPending):
		fmt.Fprintln(os.Stderr, "tomato:", err)
		return exitPending
	}
	fmt.Fprintln(os.Stderr, "tomato:", err)
	return exitFailed
}

type versionCmd struct{}

func (versionCmd) Run() error {
	fmt.Println("tomato", settings.Build())
	return nil
}
