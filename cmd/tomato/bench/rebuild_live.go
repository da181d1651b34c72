package bench

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/cmd/tomato/server"
	"tomato/eventlog/consumer"
	"tomato/projections"
)

// liveRebuildOrders is the default number of orders in the log for rebuild-live.
const liveRebuildOrders = 100_000

// rebuildLive measures what a rebuild of the read model orders costs those who query
// meanwhile. The server, with all roles, and the tool rebuild are processes of their own.
// Commands and queries come at fixed rates (traffic), and each query counts from the time
// at which it was due.
//
// First nothing else happens. Then the tool rebuilds, is killed with kill -9 at 20, 50 and
// 90 % of the fill and when it catches up, and is resumed each time. When the new
// generation serves, the read model is switched back and forth b.Rounds times. At last it
// is rebuilt once more, undisturbed, and the generation that served is dropped.
//
// At 500 queries a second, a tenth of a second has 50 of them, and the p99 of 50 is the
// slowest one. So the tenths around all switches are taken together by their distance
// from the switch (worstBucket): with 12 switches, 600 queries each. The limit is the same
// figure of as many moments of the time before, at which nothing happened.
func (b *run) rebuildLive(ctx context.Context) error {
	h, err := b.writeInterleaved(ctx, cmp.Or(b.Count, liveRebuildOrders))
	if err != nil {
		return err
	}
	ch, err := b.startChild(ctx, server.RoleCommand, server.RoleQuery, server.RoleFeed, server.RoleProject, server.RoleReact)
	if err != nil {
		return err
	}
	models, closeModels, err := b.toolModels(ctx)
	if err != nil {
		return err
	}
	defer closeModels()
	b.tell("the read models are filled, and the policies pass the history. The server logs that it cannot open the addresses of the history, because their key is on no topic")
	if err := passed(ctx, models, h.token(), projections.Orders, projections.Payments); err != nil {
		return err
	}
	t := &traffic{url: ch.url, perSecond: float64(b.Queries)}
	if t.ops, err = (tokens{}).of(benchOps); err != nil {
		return err
	}
	if err := t.awaitPolicies(ctx); err != nil {
		return err
	}
	g, err := models.Serving(ctx, projections.Orders)
	if err != nil {
		return err
	}
	rows, err := models.DB.Query(ctx, `SELECT id FROM `+g.Schema()+`.orders LIMIT 10000`)
	if err != nil {
		return err
	}
	if t.old, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		return err
	}
	if err := b.profile(); err != nil {
		return err
	}
	stop := t.start(ctx)
	figures, err := b.rebuildUnder(ctx, t, models)
	if err := errors.Join(err, stop()); err != nil {
		return err
	}
	if t.failed > 0 {
		b.tell("%d queries failed; the first: %v", t.failed, t.first)
	}
	before := latencies(t.between(figures.began, figures.quiet))
	var near []time.Duration
	for _, at := range figures.switches {
		near = append(near, t.between(at.Add(-b.Duration), at.Add(b.Duration))...)
	}
	around := latencies(near)
	during := latencies(t.between(figures.rebuildBegan, figures.rebuildBegan.Add(figures.rebuild)))
	b.add("failed_queries", "queries", float64(t.failed), 0)
	b.add("queries", "queries", float64(len(t.queries)), 0)
	b.add("commands", "commands", float64(t.commands), 0)
	b.add("before_p50_ms", "ms", before["p50_ms"], 0)
	b.add("before_p99_ms", "ms", before["p99_ms"], 0)
	b.add("switch_p99_ms", "ms", around["p99_ms"], before["p99_ms"])
	b.add("switch_worst_p99_ms", "ms", t.worstBucket(figures.switches, b.Duration), t.worstBucket(figures.moments(b.Duration), b.Duration))
	b.add("rebuild_p99_ms", "ms", during["p99_ms"], before["p99_ms"])
	b.add("rebuild_ms", "ms", float64(figures.rebuild)/float64(time.Millisecond), 0)
	b.add("switches", "switches", float64(len(figures.switches)), 0)
	return nil
}

// liveFigures are the times of rebuildLive.
type liveFigures struct {
	began, quiet time.Time // nothing but traffic from began to quiet
	switches     []time.Time
	rebuildBegan time.Time // the undisturbed one
	rebuild      time.Duration
}

// moments returns as many moments as there are switches, spread over the quiet time.
func (f *liveFigures) moments(window time.Duration) []time.Time {
	moments := make([]time.Time, len(f.switches))
	for i := range moments {
		moments[i] = f.began.Add(time.Duration(2*i+1) * window)
	}
	return moments
}

// rebuildUnder is what rebuildLive does while the traffic comes.
func (b *run) rebuildUnder(ctx context.Context, t *traffic, models *projections.ReadModels) (f liveFigures, err error) {
	wait := func(d time.Duration) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	switches := 2*b.Rounds + 2
	if err := wait(5 * b.Duration); err != nil { // it warms up
		return f, err
	}
	f.began = time.Now()
	b.tell("nothing but traffic for %v", 2*b.Duration*time.Duration(switches))
	if err := wait(2 * b.Duration * time.Duration(switches)); err != nil {
		return f, err
	}
	f.quiet = time.Now()
	var flags []string
	for _, at := range killPoints {
		killed, _, err := b.rebuildTool(ctx, flags, at.reached)
		if err == nil && !killed {
			err = errors.New("the rebuild was over before it could be killed")
		}
		if err != nil {
			return f, fmt.Errorf("a rebuild that is killed %s: %w", at.name, err)
		}
		b.tell("killed %s", at.name)
		flags = []string{"--resume"}
		if err := wait(b.Duration); err != nil {
			return f, err
		}
	}
	_, at, err := b.rebuildTool(ctx, flags, nil)
	if err != nil {
		return f, fmt.Errorf("the rebuild that was killed, resumed: %w", err)
	}
	f.switches = append(f.switches, at)
	now, err := models.Status(ctx)
	if err != nil {
		return f, err
	}
	var both [2]projections.Generation // the standby and the serving one
	for _, s := range now {
		switch {
		case s.Model == projections.Orders && s.State == projections.StateStandby:
			both[0] = s.Generation
		case s.Model == projections.Orders && s.State == projections.StateServing:
			both[1] = s.Generation
		}
	}
	b.tell("%s serves; it is switched back and forth", both[1])
	for i := range 2 * b.Rounds {
		if err := wait(2 * b.Duration); err != nil {
			return f, err
		}
		if err := models.Switch(ctx, both[i%2], false); err != nil {
			return f, err
		}
		f.switches = append(f.switches, time.Now())
	}
	if err := wait(2 * b.Duration); err != nil {
		return f, err
	}
	f.rebuildBegan = time.Now()
	if _, at, err = b.rebuildTool(ctx, []string{"--drop-old"}, nil); err != nil {
		return f, fmt.Errorf("an undisturbed rebuild: %w", err)
	}
	f.rebuild = at.Sub(f.rebuildBegan)
	f.switches = append(f.switches, at)
	b.tell("an undisturbed rebuild took %v", f.rebuild.Round(time.Millisecond))
	return f, wait(2 * b.Duration)
}

// killPoint is when a rebuild is killed.
type killPoint struct {
	name    string
	reached func(projections.Progress) bool
}

// killPoints are the points of a rebuild at which it is killed. A rebuild that is too
// quick is killed at the first report behind the point.
var killPoints = []killPoint{
	{"at 20 % of the fill", func(p projections.Progress) bool { return p.Phase != projections.PhaseFilling || p.Share >= 0.2 }},
	{"at 50 % of the fill", func(p projections.Progress) bool { return p.Phase != projections.PhaseFilling || p.Share >= 0.5 }},
	{"at 90 % of the fill", func(p projections.Progress) bool { return p.Phase != projections.PhaseFilling || p.Share >= 0.9 }},
	{"when it catches up", func(p projections.Progress) bool {
		return p.Phase != projections.PhaseFilling && p.Phase != projections.PhaseIndexing
	}},
}

// rebuildTool runs the tool rebuild for orders in a process of its own. When kill, if it
// is set, says so of the tool's progress, it kills the process and returns killed.
// Otherwise it returns when the new generation began to serve.
func (b *run) rebuildTool(ctx context.Context, flags []string, kill func(projections.Progress) bool) (killed bool, at time.Time, err error) {
	self, err := os.Executable()
	if err != nil {
		return false, at, err
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"rebuild", projections.Orders, "--json", "--partitions", fmt.Sprint(b.Partitions)}, flags...)...)
	cmd.Env = b.childEnv()
	cmd.Stderr = b.progressOut
	out, err := cmd.StdoutPipe()
	if err != nil {
		return false, at, err
	}
	if err := cmd.Start(); err != nil {
		return false, at, err
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var line struct{ Progress *projections.Progress }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil || line.Progress == nil {
			continue // the result, or the error, which ends the process with a code
		}
		if line.Progress.Phase == projections.PhaseSwitched && at.IsZero() {
			at = time.Now()
		}
		if kill != nil && !killed && at.IsZero() && kill(*line.Progress) {
			killed = true
			if err := cmd.Process.Kill(); err != nil {
				return false, at, errors.Join(err, cmd.Wait())
			}
		}
	}
	err = cmd.Wait()
	if killed {
		return true, at, nil
	}
	return false, at, err
}

// awaitPolicies waits until every consumer of the server has passed the history.
func (t *traffic) awaitPolicies(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	conn := newHTTPConn(t.url)
	defer conn.close()
	var behind []string
	err := until(ctx, func() (bool, error) {
		if err := conn.do("GET", "/v1/ops/consumers", t.ops, nil); err != nil {
			return false, err
		}
		var body struct{ Items []consumer.ConsumerStatus }
		if err := json.Unmarshal(conn.body.Bytes(), &body); err != nil {
			return false, err
		}
		behind = nil
		for _, c := range body.Items {
			for _, p := range c.Partitions {
				if p.LagRecords > 0 {
					behind = append(behind, fmt.Sprintf("%s %s/%d by %d", c.Consumer, p.Topic, p.Partition, p.LagRecords))
				}
			}
		}
		return len(behind) == 0 && len(body.Items) > 0, nil
	})
	if err != nil {
		return fmt.Errorf("consumers are behind: %s: %w", strings.Join(behind, ", "), err)
	}
	return nil
}
