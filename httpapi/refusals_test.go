package httpapi

import (
	"strings"
	"testing"

	"tomato/domain"
)

// A refused request is one log line that says who asked for what. It has no token and no
// path. A flood of refusals is not a flood of lines.
func TestRefusedRequestsAreLoggedAndSampled(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	a := testAPI(t, &log)
	token := mint(t, domain.Actor{Sub: "c-17", Role: domain.Customer})
	verify := call{method: "POST", path: "/v1/things/secret-thing/verify", header: map[string]string{"Authorization": "Bearer " + token}}
	if res, _, _ := do(t, a, verify); res.StatusCode != 403 {
		t.Fatal(res.Status)
	}
	line := log.String()
	for _, want := range []string{"a request was refused", "status=403", "method=POST", "route=/v1/things/{id}/verify", "remote=", "role=customer", "sub=c-17", "notLogged=0"} {
		if !strings.Contains(line, want) {
			t.Errorf("the line lacks %s: %s", want, line)
		}
	}
	if strings.Contains(line, token) || strings.Contains(line, "secret-thing") {
		t.Errorf("the line tells too much: %s", line)
	}
	log.Reset()
	verify.header = map[string]string{"Authorization": "Bearer forged"}
	const flood = 500
	for range flood {
		if res, _, _ := do(t, a, verify); res.StatusCode != 401 {
			t.Fatal(res.Status)
		}
	}
	lines := strings.Count(log.String(), "a request was refused")
	if lines < 2 || lines > refusalsBurst+refusalsLogged*60 || !strings.Contains(log.String(), "status=401") || strings.Contains(log.String(), "forged") {
		t.Errorf("%d lines for %d refusals: %s", lines, flood, log.String())
	}
	if skipped := a.refusals.unauthenticated.skipped.Load(); skipped < flood-int64(refusalsBurst+refusalsLogged*60) {
		t.Errorf("%d refusals are counted as not logged", skipped)
	}
	log.Reset()
	verify.header = map[string]string{"Authorization": "Bearer " + token}
	if do(t, a, verify); !strings.Contains(log.String(), "sub=c-17") {
		t.Errorf("behind a flood of requests without a token: %s", log.String())
	}
	log.Reset()
	do(t, a, call{method: "GET", path: "/v1/things/7"})
	if log.Len() > 0 {
		t.Errorf("a request that was not refused: %s", log.String())
	}
}
