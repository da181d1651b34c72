package commandside

import (
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"tomato/commandside/gateway"
	"tomato/httpapi"
)

// untouchable is a body that must not be read.
type untouchable struct{ t *testing.T }

func (u untouchable) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, nil
}

// The body of a command is not read if the request has no valid token, key or
// signature.
func TestNoBodyIsReadOfACallerWhoIsNotKnown(t *testing.T) {
	t.Parallel()
	auth, err := httpapi.NewAuthenticator(httpapi.AuthConfig{Secrets: []string{"the JWT secret of this test"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(auth.Close)
	s := &Side{Config: Config{InternalKeys: []string{"the key"}, WebhookSecrets: []string{"the webhook secret of this test"}}, Log: slog.New(slog.DiscardHandler)}
	api := httpapi.New(httpapi.Options{Auth: auth, Log: s.Log})
	s.Routes(api)
	asked := 0
	for pattern := range api.OpenAPI.Paths {
		path := strings.NewReplacer("{", "", "}", "").Replace(pattern) // any id will do
		for _, method := range []string{"POST", "PUT", "DELETE"} {
			for _, signature := range []string{"", "x", strings.Repeat("0", 63), strings.Repeat("Z", 64)} {
				r := httptest.NewRequest(method, path, untouchable{t})
				r.ContentLength = 1 << 20
				r.Header.Set(gateway.SignatureHeader, signature)
				w := httptest.NewRecorder()
				api.ServeHTTP(w, r)
				if w.Code != 405 && (w.Code != 401 || w.Header().Get("WWW-Authenticate") == "") {
					t.Errorf("%s %s: %d %s", method, path, w.Code, w.Body)
				}
				if w.Code == 401 {
					asked++
				}
			}
		}
	}
	if asked < 4*25 {
		t.Errorf("%d requests", asked)
	}
}
