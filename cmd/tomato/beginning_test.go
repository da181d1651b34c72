package main_test

import (
	"strings"
	"testing"

	"tomato/cmd/tomato/server"
	"tomato/cmd/tomato/servertest"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// TestServeRefusesALogWhoseBeginningIsGone: a new installation on it would serve
// an empty town, and an old one would price from half a table. The error says
// what to do. Where checkpoints cover what is gone, serve starts.
func TestServeRefusesALogWhoseBeginningIsGone(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, kafka eventlog.Config) {
		a := servertest.New(t, kafka).Start()
		a.AddRestaurant("r1", servertest.Lng, servertest.Lat)
		a.AddRider("k1", servertest.Lng, servertest.Lat)
		a.AwaitQuery(servertest.Ops, "/v1/riders/k1", "status", "available")
		a.AwaitIdle()
		a.Stop()
		refused := func(b *servertest.Installation, topic string, args ...string) {
			t.Helper()
			cmd := b.Config
			if len(args) > 0 {
				cmd.Role = args
			}
			s, err := server.Start(t.Context(), cmd, server.Options{})
			if err == nil {
				_ = s.Close()
				t.Fatal("it serves")
			}
			for _, want := range []string{topic, "begins at offset 1", "Restore"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q: %v", want, err)
				}
			}
		}
		eventlogtest.DeleteBefore(t, kafka, eventlog.Riders, eventlog.PartitionFor("k1", servertest.Partitions), 1)
		refused(servertest.New(t, kafka), "riders/")
		eventlogtest.DeleteBefore(t, kafka, eventlog.Restaurants, eventlog.PartitionFor("r1", servertest.Partitions), 1)
		refused(a, "restaurants/")
		a.Config.Role = []string{server.RoleQuery, server.RoleProject, server.RoleReact}
		a.Log = nil
		a.Start()
		a.AwaitQuery(servertest.Ops, "/v1/riders/k1", "status", "available")
	})
}
