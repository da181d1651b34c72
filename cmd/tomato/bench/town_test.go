package bench

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

// TestOrdersThatAreNotDeliveredFailTheTown has a server that refuses every order for a
// moment, each time again.
func TestOrdersThatAreNotDeliveredFailTheTown(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	defer server.Close()
	ctx, stop := context.WithCancelCause(t.Context())
	defer stop(nil)
	x := &town{b: &run{Cmd: Cmd{Concurrency: 2}}, url: server.URL, stop: stop, limit: 100 * time.Millisecond, free: make(chan *townBlock, 2)}
	for n := range 2 {
		k, err := newTownBlock(x, n)
		if err != nil {
			t.Fatal(err)
		}
		defer k.conn.close()
		x.free <- k
	}
	for name, phase := range map[string]func() (*townPhase, error){
		"closed": func() (*townPhase, error) { return x.closed(ctx, 3) },
		"paced":  func() (*townPhase, error) { return x.paced(ctx, 3, 100) },
	} {
		if _, err := phase(); err == nil || !strings.HasPrefix(err.Error(), "3 of 3 orders were not delivered, the first one: not delivered within 100ms: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if x.repeats.Load() == 0 {
		t.Error("no command was sent again")
	}
}

// TestProcessorTime has this process use some.
func TestProcessorTime(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip(err)
	}
	before := cpuMS(os.Getpid())
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
	}
	own := ownCPUMS()
	if after := cpuMS(os.Getpid()); after <= before || own <= 0 || own > after {
		t.Errorf("%v ms before, %v ms after, %v ms without children", before, after, own)
	}
	if cpuMS(0) != 0 {
		t.Error("no process has used processor time")
	}
}
