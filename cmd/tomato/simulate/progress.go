package simulate

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"
)

// progress shows how far a run is. On a terminal it shows a bar. Elsewhere it prints
// a line every five seconds.
type progress struct {
	out   io.Writer
	total int
	bars  *mpb.Progress
	bar   *mpb.Bar
	mu    sync.Mutex
	name  string // of the phase
}

func newProgress(out io.Writer, total int) *progress {
	p := &progress{out: out, total: total, name: "orders"}
	if f, ok := out.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			p.bars = mpb.New(mpb.WithOutput(out))
			p.bar = p.bars.AddBar(int64(total),
				mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return p.now() }), decor.CountersNoUnit(" %d/%d")),
				mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_MMSS)))
		}
	}
	return p
}

// now returns the name of the current phase.
func (p *progress) now() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.name
}

// phase sets the name of the phase that begins.
func (p *progress) phase(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.name = name
}

// run shows the progress until ctx ends.
func (p *progress) run(ctx context.Context, s *simulation) {
	every := 5 * time.Second
	if p.bar != nil {
		every = 200 * time.Millisecond
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		ended, faults := s.ledger.progressCounts()
		if p.bar != nil {
			p.bar.SetCurrent(min(int64(ended), int64(p.total)-1)) // done makes the last step
			continue
		}
		fmt.Fprintf(p.out, "%s: %d placed, %d ended, of %d; %d messages; %d broken promises\n",
			p.now(), s.placed.Load(), ended, p.total, s.feeds.messages.Load(), faults)
	}
}

// done completes the bar. It must be called after run has ended.
func (p *progress) done() {
	if p.bar == nil {
		return
	}
	p.bar.SetTotal(-1, true)
	p.bars.Wait()
}
