package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/alecthomas/kong"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"tomato/cmd/tomato/settings"
	"tomato/eventlog/consumer"
	"tomato/projections"
)

// helpVars are what the commands' help and enums take from other packages.
var helpVars = kong.Vars{"readModels": strings.Join(projections.Models(), ",")}

type rebuildCmd struct {
	settings.Tool
	Model   string `arg:"" enum:"${readModels}" help:"One of ${enum}."`
	DropOld bool   `help:"Drop the generation that served before; else it stays for a way back."`
}

// rebuildConns is how many connections a rebuild opens at most, beside one for its lock
// and one that makes the tables.
const rebuildConns = 8

func (c rebuildCmd) Run(ctx context.Context) error {
	if err := c.ResolveDatabase(); err != nil {
		return err
	}
	log := c.Logger()
	db, err := c.Database.Pool(ctx, "tomato-rebuild", rebuildConns)
	if err != nil {
		return err
	}
	defer db.Close()
	kafka := c.Kafka.Config("tomato-rebuild")
	models := &projections.ReadModels{DB: db, DatabaseURL: c.DatabaseURL, Kafka: kafka, Positions: consumer.NewPositions(db), Log: log}
	runtime := &consumer.Runtime{Kafka: kafka, Partitions: c.Partitions, DB: db, Log: log}
	show := newProgress(os.Stderr)
	start := time.Now()
	g, err := models.Rebuild(ctx, c.Model, projections.RebuildOptions{Runtime: runtime, DropOld: c.DropOld, Progress: show.tell})
	show.done()
	if err != nil {
		return err
	}
	fmt.Printf("%s serves; it took %s\n", g, time.Since(start).Round(time.Millisecond))
	return nil
}

// rebuildProgress shows a rebuild: a bar on a terminal, plain lines elsewhere.
// The targets are fixed, so the share cannot lie.
type rebuildProgress struct {
	out  io.Writer
	bars *mpb.Progress
	bar  *mpb.Bar

	mu       sync.Mutex
	moved    map[string]int64
	target   map[string]int64
	phase    projections.Phase
	lastLine time.Time
}

func newProgress(out *os.File) *rebuildProgress {
	p := &rebuildProgress{out: out, moved: map[string]int64{}, target: map[string]int64{}}
	if term.IsTerminal(int(out.Fd())) {
		p.bars = mpb.New(mpb.WithOutput(out))
	}
	return p
}

func (p *rebuildProgress) tell(pr projections.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pr.Phase != projections.Filling {
		if pr.Phase != p.phase {
			p.phase = pr.Phase
			if p.bars == nil {
				fmt.Fprintf(p.out, "%s: %s\n", pr.Generation, pr.Phase)
			}
		}
		return
	}
	key := fmt.Sprint(pr.Topic, "/", pr.Partition)
	p.moved[key], p.target[key] = pr.Done, pr.Target
	var done, target int64
	for k, d := range p.moved {
		done += d
		target += p.target[k]
	}
	if p.bars != nil {
		if p.bar == nil {
			p.bar = p.bars.AddBar(target, mpb.PrependDecorators(decor.Name(pr.Generation.String()), decor.CountersNoUnit(" %d of %d records")),
				mpb.AppendDecorators(decor.Percentage(), decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO, decor.WCSyncSpace), " filled")))
		}
		p.bar.SetTotal(target, false)
		p.bar.SetCurrent(done)
		return
	}
	if now := time.Now(); now.Sub(p.lastLine) >= time.Second || done == target {
		p.lastLine = now
		fmt.Fprintf(p.out, "%s: %s, %d of %d records\n", pr.Generation, pr.Phase, done, target)
	}
}

func (p *rebuildProgress) done() {
	if p.bars != nil {
		if p.bar != nil {
			p.bar.SetTotal(-1, true)
		}
		p.bars.Wait()
	}
}
