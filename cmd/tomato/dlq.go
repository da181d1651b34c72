package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"text/tabwriter"
	"time"

	"tomato/cmd/tomato/settings"
	"tomato/eventlog/consumer/parked"
	"tomato/projections"
)

type dlqCmd struct {
	List    dlqListCmd    `cmd:"" help:"Dead letters, oldest first."`
	Show    dlqShowCmd    `cmd:"" help:"One of them, with its record."`
	Replay  dlqReplayCmd  `cmd:"" help:"Let the consumer that failed try again: by id, key, class, or all."`
	Discard dlqDiscardCmd `cmd:"" help:"Give one up; what queues behind it goes on."`
}

// withLetters runs a tool on the dead letters of the installation.
func withLetters(ctx context.Context, f settings.Tool, do func(*parked.DeadLetters) error) error {
	if err := f.ResolveDatabase(); err != nil {
		return err
	}
	db, err := f.Database.Pool(ctx, "tomato-dlq", 2)
	if err != nil {
		return err
	}
	defer db.Close()
	kafka := f.Kafka.Config("tomato-dlq")
	models := &projections.ReadModels{DB: db, DatabaseURL: f.DatabaseURL, Kafka: kafka, Log: f.Logger()}
	return do(&parked.DeadLetters{DB: db, Kafka: kafka, Skip: models.SkipLetter})
}

// operator is who did it, for the audit.
func operator() string {
	if u, err := user.Current(); err == nil {
		return "cli:" + u.Username
	}
	return "cli"
}

type dlqListCmd struct {
	settings.Tool
	Consumer string `help:"Only of this consumer."`
	Limit    int    `default:"50" help:"At most so many."`
	Cursor   string `help:"Of the page before."`
	JSON     bool   `name:"json" help:"As JSON."`
}

func (c dlqListCmd) Run(ctx context.Context) error {
	if c.Limit < 1 {
		return settings.Usage("--limit must be at least 1")
	}
	return withLetters(ctx, c.Tool, func(l *parked.DeadLetters) error {
		items, next, err := l.List(ctx, c.Consumer, c.Limit, c.Cursor)
		if err != nil {
			return err
		}
		if c.JSON {
			return json.NewEncoder(os.Stdout).Encode(map[string]any{"items": items, "nextCursor": next})
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tCONSUMER\tSOURCE\tKEY\tTYPE\tCLASS\tLAST FAILED\tQUEUED BEHIND\tERROR")
		for _, d := range items {
			fmt.Fprintf(w, "%d\t%s\t%s/%d@%d\t%s\t%s\t%s\t%s\t%d\t%s\n", d.ID, d.Consumer, d.Topic, d.Partition, d.Offset, d.Key, d.EventType,
				d.Class, d.LastFailedAt.Format(time.RFC3339), d.QueuedBehind, d.Error)
		}
		if next != "" {
			fmt.Fprintln(w, "more: --cursor", next)
		}
		return w.Flush()
	})
}

type dlqShowCmd struct {
	settings.Tool
	ID int64 `arg:"" help:"Of the dead letter."`
}

func (c dlqShowCmd) Run(ctx context.Context) error {
	return withLetters(ctx, c.Tool, func(l *parked.DeadLetters) error {
		d, err := l.Get(ctx, c.ID)
		if err != nil {
			return err
		}
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(d)
	})
}

type dlqReplayCmd struct {
	settings.Tool
	Consumer      string  `required:"" help:"The consumer that failed."`
	ID            []int64 `name:"id" help:"These."`
	Key           string  `help:"Those of this key."`
	Class         string  `help:"Those of this error class."`
	All           bool    `help:"All of the consumer."`
	DryRun        bool    `help:"Only count."`
	RatePerSecond float64 `help:"At most so many a second, 0.1 or more; 0: all at once."`
	ConfirmCount  int     `help:"The number matched, to confirm more than 100."`
}

func (c dlqReplayCmd) Run(ctx context.Context) error {
	return withLetters(ctx, c.Tool, func(l *parked.DeadLetters) error {
		res, err := l.Replay(ctx, parked.ReplayRequest{Consumer: c.Consumer, IDs: c.ID, Key: c.Key, Class: c.Class, All: c.All,
			DryRun: c.DryRun, RatePerSecond: c.RatePerSecond, ConfirmCount: c.ConfirmCount, Who: operator()})
		if errors.Is(err, parked.ErrSelection) || errors.Is(err, parked.ErrReplayRate) {
			return settings.UsageError{Err: err}
		}
		if err != nil {
			return err
		}
		fmt.Printf("matched %d, replayed %d\n", res.Matched, res.Replayed)
		return nil
	})
}

type dlqDiscardCmd struct {
	settings.Tool
	ID     int64  `arg:"" help:"Of the dead letter."`
	Reason string `required:"" help:"Why; it is kept."`
}

func (c dlqDiscardCmd) Run(ctx context.Context) error {
	return withLetters(ctx, c.Tool, func(l *parked.DeadLetters) error {
		err := l.Discard(ctx, c.ID, c.Reason, operator())
		if errors.Is(err, parked.ErrNoReason) {
			return settings.UsageError{Err: err}
		}
		if err != nil {
			return err
		}
		fmt.Println("discarded", c.ID)
		return nil
	})
}
