package main

import (
	"strings"
	"testing"

	"tomato/cmd/tomato/server"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// TestServeRefusesALogWhoseBeginningIsGone: a new installation on it would serve
// an empty town, and an old one would price from half a table. The error says
// what to do. Where checkpoints cover what is gone, serve starts.
func TestServeRefusesALogWhoseBeginningIsGone(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, kafka eventlog.Config) {
		a := newTown(t, kafka).open()
		a.restaurant("r1", lng0, lat0)
		a.rider("k1", lng0, lat0)
		a.awaitQuery(office, "/v1/riders/k1", "status", "available")
		a.idle()
		a.stop()
		refused := func(b *town, topic string, args ...string) {
			t.Helper()
			cmd := b.cmd
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
		eventlogtest.DeleteBefore(t, kafka, eventlog.Riders, eventlog.PartitionFor("k1", townPartitions), 1)
		refused(newTown(t, kafka), "riders/")
		eventlogtest.DeleteBefore(t, kafka, eventlog.Restaurants, eventlog.PartitionFor("r1", townPartitions), 1)
		refused(a, "restaurants/")
		a.cmd.Role = []string{server.RoleQuery, server.RoleProject, server.RoleReact}
		a.log = nil
		a.open()
		a.awaitQuery(office, "/v1/riders/k1", "status", "available")
	})
}
