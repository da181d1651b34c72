package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/cmd/tomato/servertest"
	"tomato/commandside/shard"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/projections"
)

// The tests of this file build programs, and run three instances with all roles each.
// They are not parallel, so that they and the other tests leave each other time.

// upgradePerSecond is how many commands begin in a second of an upgrade. All roles of
// three instances, a broker and a Postgres share the machine with them.
const upgradePerSecond = 60

// typeRiderReviewed is the event type that only the next build knows; see
// domain/rider/nextepoch.go.
const typeRiderReviewed = "RIDER_REVIEWED"

func thisBuild(t *testing.T) string { return servertest.Build(t, "this", "../..") }
func nextBuild(t *testing.T) string {
	return servertest.Build(t, "next", "../..", "-tags", "nextepoch")
}

// upgrade is three instances with all roles under load, whose programs are replaced one
// after the other.
type upgrade struct {
	*servertest.Installation
	fleet []*instance
	load  *load
	// readers is how many of the instances have all roles, from their next start on; the
	// others have the role command alone.
	readers int
}

// roles are the roles of the n-th instance beside command.
func (u *upgrade) roles(n int) []string {
	if n < u.readers {
		return []string{"--role", "query,feed,project,react"}
	}
	return nil
}

// startUpgrade starts three instances of the program, and the load.
func startUpgrade(t *testing.T, kafka eventlog.Config, program string, rollsBack bool) *upgrade {
	t.Helper()
	u := &upgrade{Installation: servertest.New(t, kafka, "--partitions", "6"), readers: 3}
	var starting sync.WaitGroup
	for n := range 3 {
		i := newInstance(u.Installation, n)
		i.program, i.args = program, u.roles(n)
		u.fleet = append(u.fleet, i)
	}
	u.fleet[0].start() // it makes the topics and the tables
	for _, i := range u.fleet[1:] {
		starting.Go(i.start)
	}
	starting.Wait()
	u.URL = u.fleet[0].url
	u.AwaitReady()
	u.AddRestaurant("r0", servertest.Lng, servertest.Lat)
	menu := u.Must(servertest.Staff("r0"), "PUT /v1/restaurants/r0/menu/m1", servertest.Item(25000, true)).Token()
	for _, i := range u.fleet { // a look at an order that is not there waits for the menu
		u.URL = i.url
		u.Do(servertest.Customer("c0"), "POST /v1/orders", servertest.Basket("r0"), "Consistency-Token", menu, "If-Match", `"1"`)
		i.serves(2)
	}
	u.load = beginLoadOf(u.Installation, u.fleet, upgradePerSecond, rollsBack)
	u.load.during(300 * time.Millisecond)
	return u
}

// replace restarts one instance with another program and further flags. It returns when
// the old process was asked to stop.
func (u *upgrade) replace(n int, program string, flags ...string) (asked time.Time) {
	u.T.Helper()
	i := u.fleet[n]
	asked = time.Now()
	u.load.restarting.Store(i)
	i.terminate()
	i.program, i.args = program, append(u.roles(n), flags...)
	i.start()
	u.load.restarting.Store(nil)
	i.serves(2)
	u.load.during(200 * time.Millisecond)
	return asked
}

// written waits until each of the instances writes events up to this epoch, and returns
// what the last one says of it.
func (u *upgrade) written(epoch int, instances ...int) (behind []string) {
	u.T.Helper()
	for _, n := range instances {
		u.Await(fmt.Sprintf("instance %d writes epoch %d", n, epoch), func() error {
			e, err := u.epoch(n)
			if behind = e.Behind; err == nil && e.Written != epoch {
				err = fmt.Errorf("%+v", e)
			}
			return err
		})
	}
	return behind
}

// epoch asks an instance for its epochs.
func (u *upgrade) epoch(instance int) (shard.EpochStatus, error) {
	u.T.Helper()
	u.URL = u.fleet[instance].url
	var shards struct{ EventEpoch shard.EpochStatus }
	x := u.Do(servertest.Ops, "GET /v1/ops/shards", nil)
	if x.Status != http.StatusOK {
		return shards.EventEpoch, x.Fault()
	}
	return shards.EventEpoch, json.Unmarshal(x.Body, &shards)
}

// command sends a command of an operator. While shards move it may be 503, and is
// repeated; it is not repeated if the answer says something else.
func (u *upgrade) command(call string, body any) (x servertest.Answer) {
	u.T.Helper()
	u.Await(call+" is decided", func() error {
		if x = u.Do(servertest.Ops, call, body); x.Status == 0 || x.Code() == "unavailable" {
			return x.Fault()
		}
		return nil
	})
	return x
}

// must is command for what has to succeed.
func (u *upgrade) must(call string, body any) {
	u.T.Helper()
	if x := u.command(call, body); x.Status >= 300 {
		u.T.Fatal(x.Fault())
	}
}

// newForms returns the events in the logs that only the next build knows.
func (u *upgrade) newForms() (events []eventlog.Event) {
	u.T.Helper()
	u.Log.UpToDate()
	for _, history := range u.Log.All() {
		for _, e := range history {
			if e.DataVersion() > 1 || e.Type == typeRiderReviewed {
				events = append(events, e)
			}
		}
	}
	return events
}

// end ends the load, and checks that every acknowledged command is in the log once, that
// no process has ended by itself, that nothing is a dead letter, and that the rows are
// those of the log.
func (u *upgrade) end() {
	u.T.Helper()
	u.load.end()
	u.load.check()
	u.alive()
	u.URL = u.fleet[0].url
	u.AwaitIdle()
	db := u.DB()
	for _, table := range []string{"riders", "orders"} {
		u.Await("the rows of the "+table+" are those of the log", func() error { // events that are replayed take a moment
			logged, read := u.Log.Sizes(table), map[string]int{}
			var serving int
			if err := db.QueryRow(u.T.Context(), `SELECT serving FROM tomato.read_models WHERE model = $1`, table).Scan(&serving); err != nil {
				return err
			}
			rows, err := db.Query(u.T.Context(), fmt.Sprintf(`SELECT id, version FROM %s_g%d.%s`, table, serving, table))
			if err != nil {
				return err
			}
			var id string
			var version int
			_, err = pgx.ForEachRow(rows, []any{&id, &version}, func() error {
				read[table+"/"+id] = version
				return nil
			})
			if err == nil && !maps.Equal(read, logged) {
				err = fmt.Errorf("%d rows, and %d in the log, or other versions", len(read), len(logged))
			}
			return err
		})
	}
	u.NoDeadLetters()
}

// alive checks that no process has ended by itself.
func (u *upgrade) alive() {
	u.T.Helper()
	for n, i := range u.fleet {
		select {
		case <-i.process.Ended:
			u.T.Errorf("instance %d has ended by itself", n)
		default:
		}
	}
}

// TestUpgradesLoseNothing: three instances of this build become instances of the next one
// and then of this one again, under load. The next build is held at the epoch of this one,
// which is how an upgrade is done that may be rolled back. No new form is written, so the
// older build meets nothing that it cannot read.
func TestUpgradesLoseNothing(t *testing.T) {
	this, next := thisBuild(t), nextBuild(t)
	u := startUpgrade(t, eventlogtest.Embedded(t), this, false)
	for n := range u.fleet {
		u.replace(n, next, "--event-epoch", "1")
	}
	if behind := u.written(1, 0, 1, 2); len(behind) != 1 || !strings.Contains(behind[0], "TOMATO_EVENT_EPOCH is 1") {
		t.Errorf("behind are %q", behind)
	}
	u.NoDeadLetters()
	for n := range u.fleet {
		u.replace(n, this)
	}
	u.end()
	if forms := u.newForms(); len(forms) > 0 {
		t.Errorf("%d new events were written at epoch 1, such as %s in version %d", len(forms), forms[0].Type, forms[0].DataVersion())
	}
}

// TestARollBackAfterANewEpochLosesNothing: this build is replaced by the next one, which
// begins to write its new forms when the last instance of this build is asked to stop,
// and ends when one is back. That one answers 503 unknown_event for the riders that
// have new forms, its read models park their events, and all else works. After the next
// upgrade the parked events are replayed, and nothing is lost.
func TestARollBackAfterANewEpochLosesNothing(t *testing.T) {
	this, next := thisBuild(t), nextBuild(t)
	eventlogtest.Each(t, func(t *testing.T, kafka eventlog.Config) {
		u := startUpgrade(t, kafka, this, true)
		var ids []string
		for n := range 12 {
			ids = append(ids, fmt.Sprint("up", n))
			u.must("PUT /v1/riders/"+ids[n], servertest.RiderName(ids[n]))
			u.must("POST /v1/riders/"+ids[n]+"/verify", nil)
		}
		u.readers = 1 // which is the first instance, so that the older build is the only reader later
		u.replace(0, next)
		u.replace(1, next)

		// The next build has no older form of a review. The owners of this build know
		// of no reviews, and find the rider verified.
		if behind := u.written(1, 0, 1); !strings.Contains(fmt.Sprint(behind), "has epoch 1") {
			t.Errorf("behind are %q", behind)
		}
		refused := 0
		for _, id := range ids {
			x := u.command("POST /v1/riders/"+id+"/verify", nil)
			switch {
			case x.Status == http.StatusOK:
			case x.Status == http.StatusServiceUnavailable && x.Code() == "upgrade_in_progress" && x.Header.Get("Retry-After") != "" &&
				strings.Contains(x.Str("detail"), typeRiderReviewed) && strings.Contains(x.Str("detail"), "has epoch 1"):
				refused++
			default:
				t.Errorf("a review during the upgrade: %v", x.Fault())
			}
		}
		if refused == 0 {
			t.Error("no review was refused during the upgrade")
		}
		u.URL = u.fleet[0].url
		u.NoDeadLetters()

		last := u.replace(2, next)
		u.written(2, 0, 1, 2)
		u.load.during(500 * time.Millisecond)
		for _, id := range ids {
			u.must("POST /v1/riders/"+id+"/verify", nil)
			u.AwaitEvent(eventlog.Riders, id, typeRiderReviewed, 1)
		}
		u.URL = u.fleet[0].url
		u.NoDeadLetters()
		forms := u.newForms()
		if !slices.ContainsFunc(forms, func(e eventlog.Event) bool { return e.Type == rider.TypeRiderVerified && e.DataVersion() == 2 }) {
			t.Error("no RIDER_VERIFIED was written in version 2")
		}
		for _, e := range forms {
			if e.Time.Before(last) {
				t.Errorf("%s in version %d was written %v before the last instance of this build was asked to stop", e.Type, e.DataVersion(), last.Sub(e.Time))
			}
		}

		u.replace(0, this)
		u.written(1, 1, 2)
		back := time.Now()
		u.load.during(500 * time.Millisecond)
		unknown := 0
		for _, id := range ids { // through the newer build, which forwards to the older one
			x := u.command("POST /v1/riders/"+id+"/verify", nil)
			switch {
			case x.Status == http.StatusServiceUnavailable && x.Code() == "unknown_event":
				unknown++
			case x.Status == http.StatusServiceUnavailable && x.Code() == "upgrade_in_progress":
			default:
				t.Errorf("a rider with a review, after the roll back: %v", x.Fault())
			}
			u.must("PUT /v1/riders/fresh-"+id, servertest.RiderName("fresh"))
		}
		if unknown == 0 {
			t.Error("no rider with a review is 503 unknown_event after the roll back")
		}
		for _, e := range u.newForms() {
			if e.Time.After(back) {
				t.Errorf("%s in version %d was written %v after all owners had seen the older build", e.Type, e.DataVersion(), e.Time.Sub(back))
			}
		}
		u.alive()

		// An owner that is told to write the new forms all the same writes what the read
		// models of the older build park.
		u.replace(1, next, "--event-epoch", "2")
		u.URL = u.fleet[0].url
		for _, id := range ids {
			u.must("POST /v1/riders/fresh-"+id+"/verify", nil)
		}
		u.Await("the older build has parked what it cannot read", func() error {
			if items, _ := u.Must(servertest.Ops, "GET /v1/ops/dead-letters?consumer=riders", nil).Get("items").([]any); len(items) == 0 {
				return errors.New("nothing is parked")
			}
			return nil
		})

		u.replace(0, next)
		u.replace(1, next)
		u.written(2, 0, 1, 2)
		u.URL = u.fleet[0].url
		u.Tool("dlq", "replay", "--consumer", "riders", "--all")
		u.Await("the parked events are replayed", func() error {
			if items, _ := u.Must(servertest.Ops, "GET /v1/ops/dead-letters", nil).Get("items").([]any); len(items) > 0 {
				return fmt.Errorf("%d are left, such as %v", len(items), items[0])
			}
			return nil
		})
		u.end()
	})
}

// rebuildFolds rebuilds the read models whose fold this build has changed, as is to be
// done before the first instance is replaced. Another fold may give other values.
func (u *upgrade) rebuildFolds() {
	u.T.Helper()
	u.Tool("migrate")
	for _, model := range projections.Models() {
		var fold string
		if err := u.DB().QueryRow(u.T.Context(), `SELECT fold FROM tomato.generations g JOIN tomato.read_models r ON r.model = g.model AND r.serving = g.generation
			WHERE g.model = $1`, model).Scan(&fold); err != nil {
			u.T.Fatal(err)
		}
		if fold != "" && fold != projections.FoldVersion(model) { // "": of a build that did not say it
			if said := u.Tool("rebuild", model, "--accept-differences"); !strings.Contains(said, " serves; it took ") {
				u.T.Errorf("rebuild %s said %s", model, said)
			}
		}
	}
}

// TestTheCommitBeforeRunsBesideThisOne: an installation of the commit before becomes one
// of this commit under load, and one instance goes back, unless the commit adds a
// migration, which the one before refuses to run with. This commit is held at the epoch of
// the one before, as an upgrade is that may be rolled back. If it changes the fold of a
// read model, that one is rebuilt first.
func TestTheCommitBeforeRunsBesideThisOne(t *testing.T) {
	source := t.TempDir()
	archive := exec.Command("sh", "-c", `git archive HEAD~1 | tar -x -C "$0"`, source)
	archive.Dir = "../.."
	out, err := archive.CombinedOutput()
	if _, missing := os.Stat(filepath.Join(source, "go.mod")); err != nil || missing != nil {
		if _, none := os.Stat("../../.git"); none != nil {
			t.Skip("the sources are no git repository")
		}
		shallow := exec.Command("git", "rev-parse", "--is-shallow-repository")
		shallow.Dir = "../.."
		if said, serr := shallow.Output(); serr == nil && strings.TrimSpace(string(said)) == "true" {
			t.Skip("the clone has no history")
		}
		t.Fatalf("the commit before cannot be read: %v\n%s", err, out)
	}
	migrates := exec.Command("git", "diff", "--quiet", "HEAD~1", "--", "migrations")
	migrates.Dir = "../.."
	before, this := servertest.Build(t, "before", source), thisBuild(t)
	u := startUpgrade(t, eventlogtest.Embedded(t), before, false)
	held, err := u.epoch(0)
	if err != nil || held.Build < 1 {
		t.Fatalf("the epoch of the commit before: %+v, %v", held, err)
	}
	u.rebuildFolds()
	for n := range u.fleet {
		u.replace(n, this, "--event-epoch", strconv.Itoa(held.Build))
	}
	if migrates.Run() == nil {
		u.replace(1, before)
	}
	u.end()
}
