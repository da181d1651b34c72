package main_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/cmd/tomato/servertest"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// A client loads a list while most logs are empty, something happens in other logs, and then
// the client opens a feed after the token of the list: it is sent what the list does not
// have. Messages in logs that the token did not name were missed, and so was everything
// that was emitted.
func TestAFeedAfterATokenOfAListMissesNothing(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, kafka eventlog.Config) {
		a := servertest.New(t, kafka).Start()
		a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
		staff := servertest.Staff("r1")
		partition := eventlog.FeedBases(int32(a.Config.Partitions))
		var token string
		a.Await("the answer's token names a base", func() error {
			token = a.Must(staff, "GET /v1/orders", nil).Token()
			sent, err := eventlog.ParseClientToken(token)
			if err != nil {
				return err
			}
			id, err := eventlog.ReadLogID(t.Context(), eventlogtest.Client(t, kafka))
			if err != nil {
				return err
			}
			named, err := sent.For(id)
			if _, ok := named[partition]; !ok {
				return errors.Join(err, errors.New("it names none"))
			}
			return nil
		})
		id := a.Place("c1", "r1")
		if x := a.Do(domain.Actor{}, "POST /api/v1/internal/emit", map[string]any{"event": "promo:new", "room": "restaurant:r1", "payload": 1}, "x-internal-key", servertest.InternalKey); x.Status != http.StatusAccepted {
			t.Fatal(x.Fault())
		}
		f := servertest.OpenFeed(t, a.URL, "?consistencyToken="+token, servertest.WithToken(servertest.Token(t, staff)))
		f.Expect("order:update", servertest.About(id))
		f.Expect("promo:new", func(m servertest.Message) bool { return m.Room == "restaurant:r1" })
	})
}

// Topic feed cannot be written. The instance is degraded and says why, its feeds go on, and
// it is ready again when the topic can be written.
func TestAnInstanceThatCannotRecordHowFarItsFeedIsIsDegraded(t *testing.T) {
	t.Parallel()
	kafka := eventlogtest.Kafka(t)
	a := servertest.New(t, kafka).Start()
	a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
	adm := kadm.NewClient(eventlogtest.Client(t, kafka))
	limit := func(bytes string) {
		t.Helper()
		answers, err := adm.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &bytes}}, eventlog.Feed)
		if err == nil && len(answers) == 1 {
			err = answers[0].Err
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	readyz := func(degraded bool) func() error {
		return func() error {
			x := a.Do(domain.Actor{}, "GET /readyz", nil)
			if x.Status != http.StatusOK || strings.Contains(string(x.Body), `"feed-bases":"The feed cannot record how far it is."`) != degraded {
				return fmt.Errorf("%d %s", x.Status, x.Body)
			}
			return nil
		}
	}
	f := a.Feed(servertest.Staff("r1"))
	limit("10")
	first := a.Place("c1", "r1")
	a.Await("the instance is degraded", readyz(true))
	if n := a.Metric("tomato_degraded", `check="feed-bases"`); n != 1 {
		t.Error("the metric is", n)
	}
	f.Expect("order:update", servertest.About(first))
	f.Expect("order:update", servertest.About(a.Place("c2", "r1")))
	limit("1048588")
	a.Await("the instance is ready again", readyz(false))
}
