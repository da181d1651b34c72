package server

import (
	"bytes"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"tomato/cmd/tomato/settings"
	"tomato/projections"
)

// A token is printed only if nobody chose the secret that signs it, whatever else is
// made up. A chosen secret may be that of a real installation, even with --dev.
func TestTokensArePrintedWithAMadeUpSecretAlone(t *testing.T) {
	t.Parallel()
	chosen := strings.Repeat("x", 40)
	for _, r := range []struct {
		flags settings.Secrets
		shown bool
	}{
		{settings.Secrets{}, true},
		{settings.Secrets{InternalKey: chosen}, true},
		{settings.Secrets{JWTSecret: chosen}, false},
		{settings.Secrets{JWKSURL: "https://keys.example"}, false},
		{settings.Secrets{JWTSecret: chosen, ClusterKey: chosen + "c", InternalKey: chosen, WebhookSecrets: []string{"w"}}, false},
	} {
		s := &Server{config: Config{Secrets: r.flags}, url: "http://127.0.0.1:1", models: &projections.ReadModels{}}
		var err error
		if s.made, err = s.config.Develop(t.TempDir(), true); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		s.Greet(&out)
		if got := strings.Contains(out.String(), "eyJ"); got != r.shown {
			t.Errorf("%+v: tokens are shown: %v, want %v", r.flags, got, r.shown)
		}
	}
}

// A server that finds rows of another fold says what to type: when it starts, and in
// /readyz.
func TestARebuildThatIsDueIsSaid(t *testing.T) {
	t.Parallel()
	s := start(t)
	said := func() (greeting string, readiness healthReport) {
		if err := s.models.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		s.Greet(&out)
		h := s.newHealth()
		for _, c := range h.checks {
			if c.name == "read-models" {
				h.checks = []*check{c}
			}
		}
		return out.String(), h.report()
	}
	s.registry = prometheus.NewRegistry() // of the checks that are made here
	if greeting, r := said(); strings.Contains(greeting, "rebuild") || r.Status != healthy {
		t.Errorf("nothing is due, and it says %q, %+v", greeting, r)
	}
	if _, err := s.db.shared.Exec(t.Context(), `UPDATE tomato.generations SET fold = 'another' WHERE model = 'orders'`); err != nil {
		t.Fatal(err)
	}
	s.registry = prometheus.NewRegistry()
	if greeting, r := said(); !strings.Contains(greeting, "`tomato rebuild orders`") || r.Status != degraded || r.Reasons["read-models"] == "" {
		t.Errorf("a rebuild is due, and it says %q, %+v", greeting, r)
	}
}
