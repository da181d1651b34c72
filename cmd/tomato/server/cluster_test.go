package server_test

import (
	"net/http"
	"strings"
	"testing"

	"tomato/cmd/tomato/servertest"
	"tomato/commandside/shard"
)

// With the emit key one may send messages and nothing else. A call between instances,
// which names its own actor, needs the signature of an instance. The cluster key is not
// accepted as emit key.
func TestTheEmitKeyOpensEmitAlone(t *testing.T) {
	t.Parallel()
	c := startContract(t, nil)
	s := c.newScene(t)
	s.place(t)
	o := s.order
	system := `"actor":{"sub":"system","role":"system"}`
	for _, body := range []string{
		`{"topic":"orders","id":"` + o + `",` + system + `,"command":"mark-paid","commandData":{"paymentId":"p","acceptTTL":60000000000}}`,
		`{"topic":"orders","id":"` + o + `",` + system + `,"command":"look","commandData":{}}`,
	} {
		for _, key := range []string{servertest.InternalKey, servertest.ClusterKey, ""} {
			status, answer := c.post(t, shard.CommandsPath, key, body)
			if status != http.StatusUnauthorized || strings.Contains(answer, "Street") {
				t.Errorf("with key %q: %d %s", key, status, answer)
			}
		}
	}
	if got := s.do(t, s.restaurant, "accept-order"); got.body["code"] != "order_not_paid" { // so the order was not marked as paid
		t.Errorf("the restaurant accepts: %d %s", got.Status, got.Body)
	}
	emit := `{"event":"x:y","room":"ops","payload":1}`
	if status, answer := c.post(t, "/api/v1/internal/emit", servertest.ClusterKey, emit); status != http.StatusUnauthorized {
		t.Errorf("emit with the cluster key: %d %s", status, answer)
	}
	if status, answer := c.post(t, "/api/v1/internal/emit", servertest.InternalKey, emit); status != http.StatusAccepted {
		t.Errorf("emit with the emit key: %d %s", status, answer)
	}
}

// post sends a body with the emit key, if it is not "".
func (c *contract) post(t *testing.T, path, key, body string) (status int, answer string) {
	t.Helper()
	x := c.As(t).Do(noActor, "POST "+path, body, "X-Internal-Key", key)
	if x.Err != nil {
		t.Fatal(x.Err)
	}
	return x.Status, string(x.Body)
}
