package httpapi

import (
	"net/http"
	"strings"
)

// descriptions has the text of /problems/<name> for every code that an answer can have.
// This includes the codes of a feed's feed:error and of the items of a bulk answer.
// TestEveryCodeHasItsPage fails if a code is missing here, or if no answer has a code
// that is here.
var descriptions = map[string]string{
	"validation_failed":           "422. The body, path, query or a header breaks the schema in /openapi.json. errors lists every fault with its location, up to 100. Correct the request; a repeat as it is will fail again.",
	"bad_request":                 "400. A call between instances whose body, deadline or command is not valid. It is answered to instances only.",
	"malformed_json":              "400. The body is not one JSON value in UTF-8.",
	"body_too_large":              "413. The body is larger than the operation takes: 1 MiB, 256 KiB for a webhook, or TOMATO_FEED_EMIT_BYTES for the payload of an emitted message.",
	"body_unreadable":             "400 or 408. The body ended early or came too slowly.",
	"unsupported_media_type":      "415. A non-empty body needs Content-Type: application/json, UTF-8, not compressed.",
	"unauthorized":                "401. A valid bearer token is needed: signed, not expired, with sub, role and, for restaurants, restaurantId.",
	"forbidden":                   "403. The token is valid, but its bearer may not do this.",
	"not_found":                   "404. There is no such path.",
	"method_not_allowed":          "405. The path exists, the method does not; the header Allow names those that do.",
	"precondition_failed":         "412. The resource has another version than If-Match asks for. Read it again.",
	"too_many_requests":           "429. Wait for the seconds in Retry-After.",
	"internal":                    "500. A fault on our side. It has been logged.",
	"unavailable":                 "503. Wait for the seconds in Retry-After and repeat; a command is safe to repeat with the same Idempotency-Key.",
	"unknown_event":               "503. The log of this order, payment, rider or restaurant holds an event that this build does not know, such as one of a newer build; the detail names its type. Nothing is decided on it before a build that knows the event serves it. Others are not concerned.",
	"upgrade_in_progress":         "503. The command makes an event that some instances cannot read yet, because they run an older build; the detail names them. Nothing was changed. Wait for the seconds in Retry-After and repeat, or upgrade these instances.",
	"deadline_exceeded":           "503. The answer did not come in time, and the outcome is unknown. A repeat with the same Idempotency-Key is safe.",
	"idempotency_key_reused":      "422. This Idempotency-Key was used for the same operation with another body.",
	"idempotency_in_progress":     "409. The first request with this Idempotency-Key is still running. Wait for the seconds in Retry-After.",
	"read_model_behind":           "503. The read model has not reached the Consistency-Token in time. Wait for the seconds in Retry-After and repeat.",
	"invalid_cursor":              "422. The cursor is not one that this list gave.",
	"invalid_transition":          "409. The order's status, in currentStatus, does not allow this command.",
	"order_not_paid":              "409. The order is not paid yet.",
	"order_already_paid":          "409. The order is paid already.",
	"order_already_assigned":      "409. Another rider has the order.",
	"offer_expired":               "409. The offer is no longer open to this rider.",
	"order_archived":              "410. The order has been closed for too long to be changed; queries still show it.",
	"rider_busy":                  "409. The rider has an order.",
	"rider_not_verified":          "409. Ops have not verified the rider.",
	"rider_offline":               "409. The rider is offline.",
	"rider_suspended":             "409. Ops have suspended the rider.",
	"restaurant_closed":           "409. The restaurant is closed.",
	"item_unavailable":            "409. An item is not available now.",
	"unknown_restaurant":          "422. The body names a restaurant that does not exist.",
	"unknown_item":                "422. The body names an item that is not on the menu.",
	"currency_mismatch":           "422. The items have different currencies.",
	"payment_not_requested":       "409. No payment was requested for the order.",
	"order_closed_for_payment":    "409. The order can no longer be paid.",
	"payment_unsettled":           "409. There is nothing to refund or to resolve.",
	"gateway_refused":             "502. The payment gateway does not take this payment, such as one in a currency that it does not know.",
	"confirmation_required":       "409. So many records need confirmCount to match.",
	"not_configured":              "404. This installation does not have that part switched on.",
	"recorded_at_in_future":       "In the answer to a bulk of positions. The position is from more than 60 s ahead.",
	"upgrade_required":            "426. The path is a websocket; /v1/feed/sse is the same as Server-Sent Events.",
	"bad_handshake":               "400. The websocket handshake is not one of RFC 6455, version 13.",
	"origin_not_allowed":          "403. The page's origin may not open feeds here; TOMATO_ALLOWED_ORIGINS lists those that may.",
	"unknown_consistency_token":   "422. The Consistency-Token was made for another log (the data was deleted or restored, or the token comes from another installation), or it names what was never appended. Repeat without it; what you had loaded before may no longer be so.",
	"consistency_token_not_ready": "503. The read model has not reached the Consistency-Token in time. Wait for the seconds in Retry-After.",
	"order_not_found":             notFoundText,
	"restaurant_not_found":        notFoundText,
	"rider_not_found":             notFoundText,
	"payment_not_found":           notFoundText,
	"gateway_order_not_found":     notFoundText,
	"dead_letter_not_found":       notFoundText,
	"read_model_not_found":        notFoundText,
	"history_removed":             "410. Operators have removed the events of orders of that age from the read model. GET /v1/orders/{id} still shows the order.",
	"generation_state":            "409. The generation of the read model is in a state in which this cannot be done; the detail says which. GET /v1/ops/projections shows the states.",
	"rebuild_running":             "409. A rebuild of the read model is running or unfinished; the detail says how to go on.",
	"event_not_foldable":          "409. The read model cannot fold an event of the aggregate, so nothing was changed. The detail names the event. Mend the cause, or skip the event.",
	"menu_full":                   "409. The menu has as many items as it may. Remove one first.",
	"not_allowed":                 "403, as feed:error. The order is no longer this rider's, and the connection has left its room.",
	"too_many_connections":        "429. The bearer of the token has as many feeds open at this instance as they may. Close one, or wait for the seconds in Retry-After.",
	"too_many_rooms":              "429, as feed:error. The connection has joined as many rooms as it may. Leave one.",
	"unknown_op":                  "400, as feed:error. A feed takes the operations join, leave, location and seen.",
}

const notFoundText = "404. There is none with this id, or the caller is no party to it."

// describe serves GET /problems/{name}.
func describe(w http.ResponseWriter, r *http.Request) {
	code := strings.ReplaceAll(strings.TrimPrefix(r.URL.Path, "/problems/"), "-", "_")
	text, ok := descriptions[code]
	if !ok {
		WriteProblem(w, NewProblem(http.StatusNotFound, "not_found", "There is no such problem."))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte(title(code) + " (" + code + ")\n" + text + "\n"))
}
