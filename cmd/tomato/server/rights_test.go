package server_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"

	"tomato/domain"
	"tomato/httpapi"
)

// right is one row of the table of rights: who may call an operation.
//
// cells has a word for each of callers. It says how a request of that caller is answered
// which has no other fault:
//
//	yes    it is carried out or answered, as far as the state of what it is about allows
//	no     403: the role may not do this at all
//	403    the role may, but not with this restaurant, rider, order or room
//	404    for this caller there is no such order, payment or room
//	-      the operation is about nothing that belongs to others, or a rider cannot stand
//	       to it in this way
//
// Without a token each of these operations is 401. A row with a key instead of cells takes
// no token.
type right struct {
	operation string // method and path as in /openapi.json; JOIN and SEND are operations of an open feed
	cells     string
	key       string // what a caller without a token needs; "nothing" for everybody
}

// callers are the columns of the table. own is what belongs to the caller: the customer's
// order, the restaurant's own data and orders, the rider's own data and the order that
// the rider has. A party is a rider who was offered the order in this round or who dropped
// it.
var callers = []struct {
	role     domain.Role
	relation string
}{
	{domain.Customer, "own"}, {domain.Customer, "foreign"},
	{domain.Restaurant, "own"}, {domain.Restaurant, "foreign"},
	{domain.Rider, "own"}, {domain.Rider, "party"}, {domain.Rider, "foreign"},
	{domain.Ops, ""}, {domain.Support, ""},
}

// rights is the table. docs/security.md shows it.
var rights = []right{
	// Restaurants and riders.                            customer  restaurant  rider       ops support
	{"PUT /v1/restaurants/{id}", "                        no  no    yes 403     no  no  no  yes no", ""},
	{"POST /v1/restaurants/{id}/open", "                  no  no    yes 403     no  no  no  yes no", ""},
	{"POST /v1/restaurants/{id}/close", "                 no  no    yes 403     no  no  no  yes no", ""},
	{"PUT /v1/restaurants/{id}/menu/{itemId}", "          no  no    yes 403     no  no  no  yes no", ""},
	{"DELETE /v1/restaurants/{id}/menu/{itemId}", "       no  no    yes 403     no  no  no  yes no", ""},
	{"GET /v1/restaurants/{id}", "                        yes -     yes yes     yes -   -   yes yes", ""},
	{"GET /v1/restaurants/nearby", "                      yes -     yes -       yes -   -   yes yes", ""},
	{"PUT /v1/riders/{id}", "                             no  no    no  no      yes -   403 yes no", ""},
	{"POST /v1/riders/{id}/verify", "                     no  no    no  no      no  no  no  yes no", ""},
	{"POST /v1/riders/{id}/suspend", "                    no  no    no  no      no  no  no  yes no", ""},
	{"POST /v1/riders/{id}/online", "                     no  no    no  no      yes -   403 no  no", ""},
	{"POST /v1/riders/{id}/offline", "                    no  no    no  no      yes -   403 no  no", ""},
	{"PUT /v1/riders/{id}/location", "                    no  no    no  no      yes -   403 no  no", ""},
	{"POST /v1/rider-locations", "                        no  no    no  no      no  no  no  yes no", ""},
	{"GET /v1/riders/{id}", "                             no  no    no  no      yes -   403 yes yes", ""},
	{"GET /v1/riders/{id}/offers", "                      no  no    no  no      yes -   403 yes yes", ""},
	{"GET /v1/riders/nearby", "                           no  no    yes -       no  no  no  yes yes", ""},

	// Orders and payments.
	{"POST /v1/orders", "                                 yes -     no  no      no  no  no  no  no", ""},
	{"POST /v1/orders/{id}/payment", "                    yes 404   no  no      no  no  no  no  no", ""},
	{"POST /v1/orders/{id}/accept-order", "               no  no    yes 404     no  no  no  no  no", ""},
	{"POST /v1/orders/{id}/reject", "                     no  no    yes 404     no  no  no  no  no", ""},
	{"POST /v1/orders/{id}/preparing", "                  no  no    yes 404     no  no  no  no  no", ""},
	{"POST /v1/orders/{id}/ready", "                      no  no    yes 404     no  no  no  no  no", ""},
	{"POST /v1/orders/{id}/accept", "                     no  no    no  no      yes yes 404 no  no", ""},
	{"POST /v1/orders/{id}/decline", "                    no  no    no  no      yes yes 404 no  no", ""},
	{"POST /v1/orders/{id}/pick-up", "                    no  no    no  no      yes 403 404 no  no", ""},
	{"POST /v1/orders/{id}/deliver", "                    no  no    no  no      yes 403 404 no  no", ""},
	{"POST /v1/orders/{id}/drop", "                       no  no    no  no      yes 403 404 yes no", ""},
	{"POST /v1/orders/{id}/cancel", "                     yes 404   yes 404     no  no  no  yes no", ""},
	{"POST /v1/orders/{id}/dispatch", "                   no  no    no  no      no  no  no  yes no", ""},
	{"GET /v1/orders/{id}", "                             yes 404   yes 404     yes yes 404 yes yes", ""},
	{"GET /v1/orders/{id}/events", "                      yes 404   yes 404     yes yes 404 yes yes", ""},
	{"GET /v1/orders/{id}/offers", "                      no  no    yes 404     no  no  no  yes yes", ""},
	{"GET /v1/orders", "                                  yes 403   yes 403     yes -   403 yes yes", ""},
	{"GET /v1/payments/{orderId}", "                      yes 404   yes 404     no  no  no  yes yes", ""},
	{"POST /v1/payments/{orderId}/refund", "              no  no    no  no      no  no  no  yes no", ""},
	{"POST /v1/simulated-gateway/orders/{gatewayOrderId}/pay", "yes 404 no no   no  no  no  yes no", ""},

	// Operators' calls.
	{"POST /v1/ops/payments/{paymentId}/resolve", "       no  no    no  no      no  no  no  yes no", ""},
	{"GET /v1/ops/payments", "                            no  no    no  no      no  no  no  yes yes", ""},
	{"GET /v1/ops/shards", "                              no  no    no  no      no  no  no  yes yes", ""},
	{"GET /v1/ops/consumers", "                           no  no    no  no      no  no  no  yes yes", ""},
	{"GET /v1/ops/projections", "                         no  no    no  no      no  no  no  yes yes", ""},
	{"POST /v1/ops/projections/{readModel}/switch", "     no  no    no  no      no  no  no  yes no", ""},
	{"POST /v1/ops/projections/{readModel}/drop", "       no  no    no  no      no  no  no  yes no", ""},
	{"POST /v1/ops/projections/{readModel}/verify", "     no  no    no  no      no  no  no  yes no", ""},
	{"POST /v1/ops/projections/{readModel}/rebuild-one", "no  no    no  no      no  no  no  yes no", ""},
	{"POST /v1/ops/projections/{readModel}/skip", "       no  no    no  no      no  no  no  yes no", ""},
	{"POST /v1/ops/projections/{readModel}/unskip", "     no  no    no  no      no  no  no  yes no", ""},
	{"GET /v1/ops/skipped-events", "                      no  no    no  no      no  no  no  yes yes", ""},
	{"GET /v1/ops/dead-letters", "                        no  no    no  no      no  no  no  yes yes", ""},
	{"GET /v1/ops/dead-letters/{id}", "                   no  no    no  no      no  no  no  yes yes", ""},
	{"POST /v1/ops/dead-letters/{id}/replay", "           no  no    no  no      no  no  no  yes no", ""},
	{"POST /v1/ops/dead-letters/{id}/discard", "          no  no    no  no      no  no  no  yes no", ""},
	{"POST /v1/ops/dead-letters/replay", "                no  no    no  no      no  no  no  yes no", ""},
	{"POST /v1/ops/erasures", "                           no  no    no  no      no  no  no  yes no", ""},
	{"POST /v1/ops/revocations", "                        no  no    no  no      no  no  no  yes no", ""},
	{"GET /v1/ops/erasures", "                            no  no    no  no      no  no  no  yes yes", ""},

	// Feeds, and what may be done in an open one.
	{"GET /v1/feed", "                                    yes -     yes -       yes -   -   yes yes", ""},
	{"GET /v1/feed/sse", "                                yes -     yes -       yes -   -   yes yes", ""},
	{"JOIN user:{id}", "                                  yes 403   no  no      yes -   403 yes yes", ""},
	{"JOIN restaurant:{id}", "                            no  no    yes 403     no  no  no  yes yes", ""},
	{"JOIN order:{id}", "                                 yes 404   yes 404     yes 403 404 yes yes", ""},
	{"JOIN ops", "                                        no  no    no  no      no  no  no  yes yes", ""},
	{"SEND location", "                                   no  no    no  no      yes -   -   no  no", ""},
	{"SEND seen", "                                       no  no    no  no      yes yes 404 no  no", ""},

	// Without a token.
	{"POST /v1/webhooks/razorpay", "", "the gateway's signature"},
	{"POST /api/v1/internal/emit", "", "the internal key"},
	{"POST /internal/shard-commands", "", "the signature of another instance"},
	{"GET /healthz", "", "nothing"},
	{"GET /readyz", "", "nothing"},
	{"GET /metrics", "", "nothing"},
	{"GET /openapi.json", "", "nothing"},
	{"GET /asyncapi.json", "", "nothing"},
	{"GET /problems/{name}", "", "nothing"},
}

// routes returns method and path of all routes of a server with all roles.
func routes(t *testing.T, api *httpapi.API) (all []string) {
	t.Helper()
	err := chi.Walk(api.Router, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		all = append(all, method+" "+route)
		return nil
	})
	if err != nil || len(all) < 60 {
		t.Fatalf("%d routes: %v", len(all), err)
	}
	return all
}

// everyRouteHasARight fails if a route has no row in the table, if a row has no route, or
// if a row does not have a word for each caller.
func everyRouteHasARight(t *testing.T, api *httpapi.API) {
	missing := map[string]bool{}
	for _, route := range routes(t, api) {
		missing[route] = true
	}
	for _, r := range rights {
		if r.key == "" && len(strings.Fields(r.cells)) != len(callers) || r.key != "" && r.cells != "" {
			t.Errorf("%s: %d cells, want %d", r.operation, len(strings.Fields(r.cells)), len(callers))
		}
		if method, _, _ := strings.Cut(r.operation, " "); method == "JOIN" || method == "SEND" {
			continue
		}
		if !missing[r.operation] {
			t.Errorf("%s is in the table and no route, or is there twice", r.operation)
		}
		delete(missing, r.operation)
	}
	for route := range missing {
		t.Errorf("%s is not in the table of rights (rights_test.go): say there who may call it", route)
	}
}

// TestRightsAreDocumented checks that docs/security.md has the table.
func TestRightsAreDocumented(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- rights: from cmd/tomato/server/rights_test.go -->\n\n", "\n<!-- end of rights -->"
	_, table, ok := strings.Cut(string(b), begin)
	table, _, ok2 := strings.Cut(table, end)
	if want := rightsAsMarkdown(); !ok || !ok2 || table != want {
		t.Errorf("docs/security.md does not have the table of rights. It must have this between the two comments:\n%s", want)
	}
}

func rightsAsMarkdown() string {
	var b strings.Builder
	b.WriteString("| operation | customer | restaurant | rider | ops | support |\n|---|---|---|---|---|---|\n")
	for _, r := range rights {
		if r.key != "" {
			fmt.Fprintf(&b, "| `%s` | without a token: %s | | | | |\n", r.operation, r.key)
			continue
		}
		fmt.Fprintf(&b, "| `%s`", r.operation)
		cells := strings.Fields(r.cells)
		for _, role := range []domain.Role{domain.Customer, domain.Restaurant, domain.Rider, domain.Ops, domain.Support} {
			var parts []string
			for i, c := range callers {
				if c.role != role || cells[i] == "-" {
					continue
				}
				parts = append(parts, strings.TrimSpace(c.relation+" "+cells[i]))
			}
			b.WriteString(" | " + cellAsText(parts))
		}
		b.WriteString(" |\n")
	}
	return b.String()
}

// cellAsText shortens what a role may do if it does not depend on whose the resource is.
func cellAsText(parts []string) string {
	first := strings.TrimPrefix(parts[0], "own ")
	for _, p := range parts {
		if !strings.HasSuffix(p, " "+first) && p != first {
			return strings.Join(parts, ", ")
		}
	}
	return first
}
