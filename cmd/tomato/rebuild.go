package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
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
	Model             string  `arg:"" enum:"${readModels}" help:"One of ${enum}."`
	Resume            bool    `help:"Go on with a rebuild that was interrupted."`
	Cancel            bool    `help:"End an unfinished rebuild, wherever it runs, and remove what it has made."`
	DropOld           bool    `help:"Drop the generation that served before; else it stays as the standby, for a way back."`
	DryRun            bool    `help:"Fill and compare, report, and remove it again; do not switch."`
	AcceptDifferences bool    `help:"Switch although the rows differ from those that serve."`
	Throttle          float64 `placeholder:"EVENTS/S" help:"Read at most so many events a second; 0: as many as possible."`
	JSON              bool    `name:"json" help:"Progress and result as JSON lines."`
}

func (c rebuildCmd) check() error {
	switch {
	case c.Cancel && (c.Resume || c.DropOld || c.DryRun || c.AcceptDifferences || c.Throttle != 0):
		return settings.Usage("--cancel goes with no other flag of rebuild but --json")
	case c.DryRun && (c.DropOld || c.AcceptDifferences):
		return settings.Usage("--dry-run does not switch, so it goes neither with --drop-old nor with --accept-differences")
	case c.Throttle < 0 || c.Throttle != c.Throttle:
		return settings.Usage("--throttle must be 0 or more events a second")
	}
	return nil
}

// rebuildConns is how many connections a rebuild opens at most, beside one for its lock,
// one that makes the tables, and two that compare rows.
const rebuildConns = 8

func (c rebuildCmd) Run(ctx context.Context) error {
	if err := c.check(); err != nil {
		return err
	}
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
	if c.Cancel {
		return c.cancel(ctx, models)
	}
	var show rebuildDisplay = newRebuildText(os.Stderr)
	if c.JSON {
		show = rebuildJSON{json.NewEncoder(os.Stdout)}
	}
	start := time.Now()
	result, err := models.Rebuild(ctx, c.Model, projections.RebuildOptions{
		Runtime: &consumer.Runtime{Kafka: kafka, Partitions: c.Partitions, DB: db, Log: log},
		Resume:  c.Resume, DropOld: c.DropOld, DryRun: c.DryRun, AcceptDifferences: c.AcceptDifferences, EventsPerSecond: c.Throttle, Progress: show.progress})
	show.end(result, time.Since(start), err)
	var differ *projections.DifferencesError
	if errors.As(err, &differ) && !c.DryRun {
		err = fmt.Errorf("%w. To switch all the same, run `tomato rebuild %s --resume --accept-differences`", err, c.Model)
	}
	return err
}

func (c rebuildCmd) cancel(ctx context.Context, models *projections.ReadModels) error {
	g, err := models.CancelRebuild(ctx, c.Model)
	if err != nil {
		return err
	}
	if c.JSON {
		return json.NewEncoder(os.Stdout).Encode(map[string]any{"canceled": g})
	}
	fmt.Printf("%s is removed\n", g)
	return nil
}

// rebuildDisplay shows a rebuild.
type rebuildDisplay interface {
	progress(projections.Progress)
	end(projections.RebuildResult, time.Duration, error)
}

// rebuildJSON writes a line {"progress":…} for each report, and at the end a line
// {"result":…}.
type rebuildJSON struct{ out *json.Encoder }

func (d rebuildJSON) progress(p projections.Progress) {
	_ = d.out.Encode(map[string]any{"progress": p})
}

func (d rebuildJSON) end(r projections.RebuildResult, took time.Duration, err error) {
	line := map[string]any{"result": r, "seconds": took.Seconds()}
	if err != nil {
		line["error"] = err.Error()
	}
	_ = d.out.Encode(line)
}

// rebuildText shows a rebuild to people: a bar for each phase on a terminal, plain lines
// elsewhere.
type rebuildText struct {
	out      io.Writer
	bars     *mpb.Progress // nil: no terminal
	bar      *mpb.Bar
	phase    projections.Phase
	lastLine time.Time
}

const barUnits = 10_000 // of a bar, which shows a share

func newRebuildText(out *os.File) *rebuildText {
	d := &rebuildText{out: out}
	if term.IsTerminal(int(out.Fd())) {
		d.bars = mpb.New(mpb.WithOutput(out))
	}
	return d
}

var phaseNames = map[projections.Phase]string{
	projections.PhaseFilling: "filling", projections.PhaseIndexing: "indexing", projections.PhaseCatchingUp: "catching up",
	projections.PhaseVerifying: "comparing", projections.PhaseHandingOver: "handing over", projections.PhaseSwitched: "switched",
}

// what is counted in each phase.
var phaseUnits = map[projections.Phase]string{projections.PhaseIndexing: "indexes", projections.PhaseVerifying: "rows"}

func (d *rebuildText) progress(p projections.Progress) {
	text := describe(p)
	if d.bars == nil {
		if now := time.Now(); p.Phase != d.phase || now.Sub(d.lastLine) >= time.Second || p.Done == p.Target && p.Target > 0 {
			d.phase, d.lastLine = p.Phase, now
			fmt.Fprintln(d.out, text)
		}
		return
	}
	if p.Phase != d.phase {
		d.finishBar()
		d.phase = p.Phase
		if p.Phase == projections.PhaseSwitched {
			return
		}
		d.bar = d.bars.AddBar(barUnits, mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return text })))
	}
	if d.bar != nil {
		d.bar.SetCurrent(int64(p.Share * barUnits))
	}
}

// describe returns the progress as a line.
func describe(p projections.Progress) string {
	s := fmt.Sprintf("%s: %s", p.Generation, phaseNames[p.Phase])
	if p.Phase == projections.PhaseSwitched {
		return s
	}
	unit := phaseUnits[p.Phase]
	if unit == "" {
		unit = "records"
	}
	s += fmt.Sprintf(", %d of %d %s (%.1f %%)", p.Done, p.Target, unit, 100*p.Share)
	if p.PerSecond > 0 && p.Phase != projections.PhaseIndexing {
		s += fmt.Sprintf(", %.0f/s", p.PerSecond)
	}
	if p.SecondsLeft > 0 {
		s += fmt.Sprintf(", %s left", time.Duration(p.SecondsLeft*float64(time.Second)).Round(time.Second))
	}
	return s
}

func (d *rebuildText) finishBar() {
	if d.bar != nil {
		d.bar.SetTotal(-1, true)
		d.bar = nil
	}
}

// end prints what was compared, and what serves. The caller prints the error.
func (d *rebuildText) end(r projections.RebuildResult, took time.Duration, err error) {
	if d.bars != nil {
		d.finishBar()
		d.bars.Wait()
	}
	c := r.Comparison
	if compared := c.Rows+c.Missing+c.Extra > 0 || c.Skipped != ""; compared {
		for _, line := range comparisonLines(r) {
			fmt.Println(line)
		}
	}
	switch {
	case r.Switched && r.Alone:
		fmt.Printf("%s serves; it took %s. No process projects it: start `tomato serve` with the role project, of this version\n", r.Generation, took.Round(time.Millisecond))
	case r.Switched:
		fmt.Printf("%s serves; it took %s\n", r.Generation, took.Round(time.Millisecond))
	case err == nil:
		fmt.Printf("%s would serve; it took %s. It is removed again, because of --dry-run\n", r.Generation, took.Round(time.Millisecond))
	}
}

// comparisonLines says what the comparison of a rebuild has found.
func comparisonLines(r projections.RebuildResult) []string {
	c := r.Comparison
	if c.Skipped != "" {
		return []string{"not compared: " + c.Skipped}
	}
	lines := []string{fmt.Sprintf("compared with %s: %d rows in both, %d missing, %d extra, %d changed", r.Before, c.Rows, c.Missing, c.Extra, c.Changed)}
	if c.ParkedKeys > 0 {
		lines = append(lines, fmt.Sprintf("left out: %d keys with parked events, see `tomato dlq list`", c.ParkedKeys))
	}
	if c.NewlyParked > 0 {
		lines = append(lines, fmt.Sprintf("cannot be folded any more: %d keys, see `tomato dlq list`", c.NewlyParked))
	}
	for _, name := range c.Unshared {
		lines = append(lines, "only there: "+name)
	}
	for _, difference := range c.Differences {
		lines = append(lines, difference.String())
	}
	if named, all := len(c.Differences), c.Missing+c.Extra+c.Changed+c.NewlyParked; int64(named) < all {
		lines = append(lines, fmt.Sprintf("… and %d more", all-int64(named)))
	}
	return lines
}
