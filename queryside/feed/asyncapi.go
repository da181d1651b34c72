package feed

import (
	_ "embed"
	"net/http"

	"tomato/httpapi"
)

// asyncAPIDocument is written by hand; asyncapi_test.go holds it to the events
// and feed messages that there are.
//
//go:embed asyncapi.json
var asyncAPIDocument []byte

// AsyncAPI adds GET /asyncapi.json: the topics and the feed's messages, as
// AsyncAPI 3.0. It needs no token.
func AsyncAPI(api *httpapi.API) {
	api.Router.Get("/asyncapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(asyncAPIDocument)
	})
}
