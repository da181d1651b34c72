package main_test

import (
	"errors"
	"net/http"
	"testing"

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
