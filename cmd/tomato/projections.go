package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"tomato/cmd/tomato/settings"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/projections"
)

type projectionsCmd struct {
	List       projectionsListCmd   `cmd:"" help:"The generations of the read models: state, lag, rows, size, and whether a rebuild is due."`
	Verify     projectionsVerifyCmd `cmd:"" help:"Compare the rows that serve with those of another generation, or with the log."`
	Switch     projectionsSwitchCmd `cmd:"" help:"Let another generation serve."`
	Drop       projectionsDropCmd   `cmd:"" help:"Remove a generation that does not serve."`
	RebuildOne rebuildOneCmd        `cmd:"" name:"rebuild-one" help:"Fold one aggregate again from the log."`
	Skip       skipCmd              `cmd:"" help:"Let an event never take effect in a read model, nor in a rebuild of it."`
	Unskip     unskipCmd            `cmd:"" help:"Let an event that was skipped take effect."`
	Skipped    skippedCmd           `cmd:"" help:"The events that are skipped."`
	Trim       trimHistoryCmd       `cmd:"" name:"trim-history" help:"Remove the events of old orders from the read model. The orders stay, and so does the log."`
}

// withReadModels runs a tool on the read models of the installation.
func withReadModels(ctx context.Context, f settings.Tool, do func(projections.Operator) error) error {
	if err := f.ResolveDatabase(); err != nil {
		return err
	}
	db, err := f.Database.Pool(ctx, "tomato-projections", 4)
	if err != nil {
		return err
	}
	defer db.Close()
	return do(projections.Operator{Who: operator(), Models: &projections.ReadModels{DB: db, DatabaseURL: f.DatabaseURL, Kafka: f.Kafka.Config("tomato-projections"),
		Positions: consumer.NewPositions(db), Log: f.Logger()}})
}

// usage makes the mistakes of a caller a wrong use of the command line.
func usage(err error) error {
	for _, mistake := range []error{projections.ErrNoModel, projections.ErrNoReason, projections.ErrNoEvent, projections.ErrNoEvents, projections.ErrNoSkipped} {
		if errors.Is(err, mistake) {
			return settings.UsageError{Err: err}
		}
	}
	if errors.Is(err, projections.ErrRunning) {
		return fmt.Errorf("%w: wait for its end, or run `tomato rebuild` with --cancel", err)
	}
	return err
}

func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

type projectionsListCmd struct {
	settings.Tool
	JSON bool `name:"json" help:"As JSON."`
}

// listedGeneration is a generation as list shows it.
type listedGeneration struct {
	ReadModel  string  `json:"readModel"`
	Generation int     `json:"generation"`
	State      string  `json:"state"`
	Fold       string  `json:"fold"`
	RebuildDue bool    `json:"rebuildDue"`
	LagEvents  int64   `json:"lagEvents"`
	LagSeconds float64 `json:"lagSeconds"`
	Rows       int64   `json:"rows"` // as Postgres estimates it
	Bytes      int64   `json:"bytes"`
	Skipped    int     `json:"skippedEvents"`
}

func (c projectionsListCmd) Run(ctx context.Context) error {
	return withReadModels(ctx, c.Tool, func(o projections.Operator) error {
		all, err := o.Models.Status(ctx)
		if err != nil {
			return err
		}
		skipped, err := o.Models.Skipped(ctx, "")
		if err != nil {
			return err
		}
		items := make([]listedGeneration, len(all))
		for i, s := range all {
			l := listedGeneration{ReadModel: s.Model, Generation: s.Number, State: string(s.State), Fold: s.Fold, RebuildDue: s.Due, LagEvents: s.LagEvents, LagSeconds: s.LagSeconds}
			for _, t := range s.Tables {
				l.Rows, l.Bytes = l.Rows+t.LiveRows, l.Bytes+t.Bytes
			}
			for _, e := range skipped {
				if e.Model == s.Model {
					l.Skipped++
				}
			}
			items[i] = l
		}
		if c.JSON {
			return printJSON(map[string]any{"items": items})
		}
		return listGenerations(os.Stdout, items, o.Models.RebuildAdvice())
	})
}

func listGenerations(out io.Writer, items []listedGeneration, advice string) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "READ MODEL\tGENERATION\tSTATE\tFOLD\tLAG\tROWS\tMIB\tSKIPPED EVENTS\tREBUILD DUE")
	for _, l := range items {
		lag, due := strconv.FormatInt(l.LagEvents, 10), ""
		if l.LagSeconds > 0 {
			lag += fmt.Sprintf(" (%s)", time.Duration(l.LagSeconds*float64(time.Second)).Round(time.Second))
		}
		if l.RebuildDue {
			due = "yes"
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%d\t%.1f\t%d\t%s\n", l.ReadModel, l.Generation, l.State, l.Fold, lag, l.Rows, float64(l.Bytes)/(1<<20), l.Skipped, due)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if advice != "" {
		fmt.Fprintln(out, advice)
	}
	return nil
}

type projectionsVerifyCmd struct {
	settings.Tool
	Model      string `arg:"" enum:"${readModels}" help:"One of ${enum}."`
	Generation int    `help:"The generation to compare with; default: the newest one that is kept up to date beside the one that serves, or else the log."`
	Log        bool   `help:"Compare with the log: fold all of it into a new generation, compare, and remove it again."`
	JSON       bool   `name:"json" help:"As JSON."`
}

func (c projectionsVerifyCmd) Run(ctx context.Context) error {
	if c.Log && c.Generation != 0 || c.Generation < 0 {
		return settings.Usage("--generation takes a number above 0, and does not go with --log")
	}
	withLog := func() error {
		return rebuildCmd{Tool: c.Tool, Model: c.Model, DryRun: true, JSON: c.JSON}.Run(ctx)
	}
	if c.Log {
		return withLog()
	}
	var differs bool
	err := withReadModels(ctx, c.Tool, func(o projections.Operator) error {
		v, err := o.Models.Verify(ctx, c.Model, c.Generation)
		if err != nil {
			return err
		}
		differs = !v.Comparison.Equal()
		if c.JSON {
			return printJSON(v)
		}
		for _, line := range comparisonLines(projections.RebuildResult{Generation: v.Other, Before: v.Serving, Comparison: v.Comparison}) {
			fmt.Println(line)
		}
		for _, s := range v.SkippedEvents {
			fmt.Printf("skipped: %s of %s (%s), by %s: %s\n", s.Position(), s.Key, s.Type, s.Who, s.Reason)
		}
		return nil
	})
	switch {
	case errors.Is(err, projections.ErrNothingToVerify):
		return withLog()
	case err == nil && differs:
		return errors.New("the rows differ")
	}
	return err
}

type projectionsSwitchCmd struct {
	settings.Tool
	Model      string `arg:"" enum:"${readModels}" help:"One of ${enum}."`
	Generation int    `arg:"" help:"Its number: the standby."`
	Force      bool   `help:"Switch although it is behind the generation that serves, so that queries show old rows."`
}

func (c projectionsSwitchCmd) Run(ctx context.Context) error {
	return withReadModels(ctx, c.Tool, func(o projections.Operator) error {
		g := projections.Generation{Model: c.Model, Number: c.Generation}
		if err := o.Switch(ctx, g, c.Force); err != nil {
			return usage(err)
		}
		fmt.Printf("%s serves\n", g)
		return nil
	})
}

type projectionsDropCmd struct {
	settings.Tool
	Model      string `arg:"" enum:"${readModels}" help:"One of ${enum}."`
	Generation int    `arg:"" help:"Its number."`
}

func (c projectionsDropCmd) Run(ctx context.Context) error {
	return withReadModels(ctx, c.Tool, func(o projections.Operator) error {
		g := projections.Generation{Model: c.Model, Number: c.Generation}
		if err := o.Drop(ctx, g); err != nil {
			return usage(err)
		}
		fmt.Printf("%s is removed\n", g)
		return nil
	})
}

type rebuildOneCmd struct {
	settings.Tool
	Aggregate string `arg:"" placeholder:"MODEL/ID" help:"Such as orders/0199f3a2-7c1e-7cc0-8000-5a1f0e6a4b11."`
	JSON      bool   `name:"json" help:"As JSON."`
}

func (c rebuildOneCmd) Run(ctx context.Context) error {
	model, key, ok := strings.Cut(c.Aggregate, "/")
	if !ok {
		return settings.Usage("name the read model and the id, such as orders/0199f3a2-7c1e-7cc0-8000-5a1f0e6a4b11")
	}
	return withReadModels(ctx, c.Tool, func(o projections.Operator) error {
		done, err := o.RebuildOne(ctx, model, key)
		if err != nil {
			return usage(err)
		}
		return showRefolded(done, c.JSON, map[string]any{"generations": done})
	})
}

// showRefolded says what became of an aggregate in each generation.
func showRefolded(done []projections.Refolded, asJSON bool, all map[string]any) error {
	if asJSON {
		return printJSON(all)
	}
	for _, r := range done {
		if r.OtherFold {
			fmt.Printf("%s: unchanged, because another version of this program has made it: drop it, or repeat this with that version\n", r.Generation)
			continue
		}
		fmt.Printf("%s: folded again, now at version %d", r.Generation, r.Version)
		if r.Cleared > 0 {
			fmt.Printf("; %d parked events are done by that", r.Cleared)
		}
		fmt.Println()
	}
	return nil
}

// eventArg names an event of a read model.
type eventArg struct {
	Model string `arg:"" enum:"${readModels}" help:"One of ${enum}."`
	Event string `arg:"" placeholder:"TOPIC/PARTITION@OFFSET" help:"As dead letters name it, such as orders/3@1207."`
}

func (a eventArg) position() (at eventlog.Position, err error) {
	topic, rest, ok := strings.Cut(a.Event, "/")
	partition, offset, ok2 := strings.Cut(rest, "@")
	p, err1 := strconv.ParseInt(partition, 10, 32)
	o, err2 := strconv.ParseInt(offset, 10, 64)
	if !ok || !ok2 || topic == "" || errors.Join(err1, err2) != nil || p < 0 || o < 0 {
		return at, settings.Usage("%q names no event: expected TOPIC/PARTITION@OFFSET, such as orders/3@1207", a.Event)
	}
	return eventlog.Position{TopicPartition: eventlog.TopicPartition{Topic: topic, Partition: int32(p)}, Offset: o}, nil
}

type skipCmd struct {
	settings.Tool
	eventArg
	Reason string `required:"" help:"Why; it is kept for ever."`
	JSON   bool   `name:"json" help:"As JSON."`
}

func (c skipCmd) Run(ctx context.Context) error {
	at, err := c.position()
	if err != nil {
		return err
	}
	return withReadModels(ctx, c.Tool, func(o projections.Operator) error {
		s, done, err := o.Skip(ctx, c.Model, at, c.Reason)
		if err != nil {
			return usage(err)
		}
		if !c.JSON {
			fmt.Printf("%s of %s (%s) takes no effect in %s\n", s.Position(), s.Key, s.Type, s.Model)
		}
		return showRefolded(done, c.JSON, map[string]any{"event": s, "generations": done})
	})
}

type unskipCmd struct {
	settings.Tool
	eventArg
	JSON bool `name:"json" help:"As JSON."`
}

func (c unskipCmd) Run(ctx context.Context) error {
	at, err := c.position()
	if err != nil {
		return err
	}
	return withReadModels(ctx, c.Tool, func(o projections.Operator) error {
		done, err := o.Unskip(ctx, c.Model, at)
		if err != nil {
			return usage(err)
		}
		return showRefolded(done, c.JSON, map[string]any{"generations": done})
	})
}

type skippedCmd struct {
	settings.Tool
	JSON bool `name:"json" help:"As JSON."`
}

func (c skippedCmd) Run(ctx context.Context) error {
	return withReadModels(ctx, c.Tool, func(o projections.Operator) error {
		all, err := o.Models.Skipped(ctx, "")
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(map[string]any{"items": append([]projections.SkippedEvent{}, all...)})
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "READ MODEL\tEVENT\tKEY\tVERSION\tTYPE\tAT\tBY\tREASON")
		for _, s := range all {
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", s.Model, s.Position(), s.Key, s.Version, s.Type, s.At.Format(time.RFC3339), s.Who, s.Reason)
		}
		return w.Flush()
	})
}

type trimHistoryCmd struct {
	settings.Tool
	Model  string `arg:"" enum:"${readModels}" help:"One of ${enum}."`
	Before string `required:"" placeholder:"YYYY-MM" help:"Remove the events of what was made before this month, or day (YYYY-MM-DD)."`
	JSON   bool   `name:"json" help:"As JSON."`
}

func (c trimHistoryCmd) Run(ctx context.Context) error {
	before, err := projections.ParseMonth(c.Before)
	if err != nil {
		return settings.Usage("--before: %v", err)
	}
	return withReadModels(ctx, c.Tool, func(o projections.Operator) error {
		last := time.Now()
		removed, err := o.TrimHistory(ctx, c.Model, before, func(removed int64) {
			if now := time.Now(); now.Sub(last) >= time.Second {
				last = now
				fmt.Fprintf(os.Stderr, "%d events are removed so far\n", removed)
			}
		})
		if errors.Is(err, projections.ErrTooYoung) {
			return settings.UsageError{Err: err}
		}
		if err != nil {
			return usage(err)
		}
		if c.JSON {
			return printJSON(map[string]any{"removed": removed, "before": before})
		}
		fmt.Printf("%d events of before %s are removed. Postgres uses their space for new rows\n", removed, before.Format(time.DateOnly))
		return nil
	})
}
