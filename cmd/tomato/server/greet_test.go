package server

import (
	"bytes"
	"strings"
	"testing"

	"tomato/cmd/tomato/settings"
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
		s := &Server{config: Config{Secrets: r.flags}, url: "http://127.0.0.1:1"}
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
