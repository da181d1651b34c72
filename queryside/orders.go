package queryside

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog/subjectkeys"
	"tomato/httpapi"
)

// orderModel names the read model of the orders.
const orderModel = "orders"

type orderInput struct {
	queryInput
	ID httpapi.OrderID `path:"id"`
}

type orderOutput struct {
	ETag  string `header:"ETag"`
	Token string `header:"Consistency-Token"`
	Body  order.View
}

type listOrdersInput struct {
	queryInput
	page
	RestaurantID httpapi.ID    `query:"restaurantId"`
	CustomerID   httpapi.ID    `query:"customerId"`
	RiderID      httpapi.ID    `query:"riderId"`
	Status       []orderStatus `query:"status" doc:"May be repeated."`
	Dispatch     string        `query:"dispatch" enum:"exhausted" doc:"For ops: orders that dispatch found no rider for."`
}

type listOrdersOutput struct {
	Token string `header:"Consistency-Token"`
	Body  struct {
		Items      []order.View `json:"items"`
		NextCursor string       `json:"nextCursor,omitempty"`
	}
}

// orderStatus is the type of the parameter status.
type orderStatus order.Status

// Schema lists the statuses.
func (orderStatus) Schema(huma.Registry) *huma.Schema {
	s := &huma.Schema{Type: huma.TypeString}
	for _, status := range order.Statuses {
		s.Enum = append(s.Enum, string(status))
	}
	return s
}

type orderEvent struct {
	Type        string          `json:"type"`
	Version     int64           `json:"version"`
	DataVersion int             `json:"dataVersion,omitempty" doc:"The version of the type's data. Absent if it is the first one."`
	Timestamp   time.Time       `json:"timestamp"`
	Actor       *eventActor     `json:"actor,omitempty" doc:"Who made the event. Absent if it was nobody: a deadline, or Tomato itself."`
	Data        json.RawMessage `json:"data" doc:"As on the topic orders, with personal fields opened. What the caller may not see is left out. It is empty if this instance does not know the type or its version, and so cannot tell what the caller may see."`
}

type eventActor struct {
	Role domain.Role `json:"role" enum:"customer,restaurant,rider,ops"`
	Sub  string      `json:"sub,omitempty" doc:"Absent if the caller may not see who it was."`
}

type orderEventsOutput struct {
	Token string `header:"Consistency-Token"`
	Body  struct {
		Items []orderEvent `json:"items"`
	}
}

func (s *Side) orderRoutes(api *httpapi.API) {
	httpapi.Register(api, operation("/v1/orders/{id}", "getOrder", "One order", 404), everyone, s.getOrder)
	httpapi.Register(api, operation("/v1/orders", "listOrders", "Orders, newest first"), everyone, s.listOrders)
	httpapi.Register(api, operation("/v1/orders/{id}/events", "getOrderEvents", "Everything that happened to an order, oldest first", 404, 410), everyone, s.getOrderEvents)
	httpapi.Register(api, operation("/v1/orders/{id}/offers", "getOrderOffers", "To which riders an order is offered, and who has seen the offer", 404), []domain.Role{domain.Ops, domain.Support, domain.Restaurant}, s.getOrderOffers)
}

// orderOffer is what one rider was offered in the present round of an order, or the last one.
type orderOffer struct {
	RiderID        string           `json:"riderId"`
	Wave           int              `json:"wave" doc:"The last in which it was offered."`
	DistanceMeters int              `json:"distanceMeters"`
	State          order.OfferState `json:"state"`
	SeenAt         *time.Time       `json:"seenAt,omitempty" doc:"When the rider's device said first that the rider sees the offer of this wave. Kept for a week."`
}

type orderOffersOutput struct {
	Token string `header:"Consistency-Token"`
	Body  struct {
		Round int          `json:"round" doc:"Of dispatch; 0: no rider was searched for yet."`
		Items []orderOffer `json:"items"`
	}
}

// getOrderOffers answers to whom the order is offered, and who has seen the offer.
func (s *Side) getOrderOffers(ctx context.Context, in *orderInput) (*orderOffersOutput, error) {
	out := &orderOffersOutput{}
	token, err := s.read(ctx, in.After, []string{orderModel}, func(ctx context.Context, schemas []string) error {
		rows, err := s.DB.Query(ctx, `SELECT o.state, coalesce(n.round, 0), coalesce(n.wave, 0), coalesce(n.rider_id, ''), n.seen_at
			FROM `+schemas[0]+`.orders o LEFT JOIN tomato.seen_offers n ON n.order_id = o.id WHERE o.id = $1`, string(in.ID))
		if err != nil {
			return err
		}
		type offer struct {
			round, wave int
			rider       string
		}
		var text []byte
		var at offer
		var seenAt *time.Time
		seen := map[offer]*time.Time{}
		var state *order.State
		_, err = pgx.ForEachRow(rows, []any{&text, &at.round, &at.wave, &at.rider, &seenAt}, func() error {
			if state == nil {
				if state, err = readState[order.State](text); err != nil {
					return err
				}
			}
			if seenAt != nil {
				utc := seenAt.UTC()
				seen[at] = &utc
			}
			return nil
		})
		if err != nil {
			return err
		}
		if state == nil || !state.Party(httpapi.Actor(ctx)) {
			return notFound("order")
		}
		out.Body.Round, out.Body.Items = state.Round, make([]orderOffer, len(state.Offers))
		for i, o := range state.Offers {
			out.Body.Items[i] = orderOffer{o.RiderID, o.Wave, o.DistanceMeters, o.State, seen[offer{state.Round, o.Wave, o.RiderID}]}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out.Token = token
	return out, nil
}

// orderRow is an order, with the facts from which its payment status is derived.
type orderRow struct {
	state     []byte
	createdAt time.Time
	facts     order.PaymentFacts
}

// orderColumns are the columns of an orderRow. In the statement, o is a row of orders
// and p the row of its payment, if there is one.
const orderColumns = `o.state, o.created_at, coalesce(p.booked, false), coalesce(p.refund_requested, false),
	coalesce(p.refund_succeeded, false), coalesce(p.last_attempt_failed, false)`

func (r *orderRow) columns() []any {
	return []any{(*[]byte)(&r.state), &r.createdAt, &r.facts.Booked, &r.facts.RefundRequested, &r.facts.RefundSucceeded, &r.facts.LastAttemptFailed}
}

func (r *orderRow) order() (*order.State, order.View, error) {
	s, err := readState[order.State](r.state)
	if err != nil {
		return nil, order.View{}, err
	}
	return s, order.NewView(s, order.PaymentStatusOf(s, r.facts)), nil
}

func (s *Side) getOrder(ctx context.Context, in *orderInput) (*orderOutput, error) {
	actor := httpapi.Actor(ctx)
	var row orderRow
	var lng, lat *float64
	var recordedAt *time.Time
	token, err := s.read(ctx, in.After, []string{orderModel, paymentModel, riderModel}, func(ctx context.Context, schemas []string) error {
		err := s.DB.QueryRow(ctx, `SELECT `+orderColumns+`, ST_X(l.location::geometry), ST_Y(l.location::geometry), l.recorded_at
			FROM `+schemas[0]+`.orders o
			LEFT JOIN `+schemas[1]+`.payments p ON p.id = o.id
			LEFT JOIN `+schemas[2]+`.rider_positions l ON l.rider_id = o.rider_id AND o.status IN ('rider_assigned', 'picked_up')
			WHERE o.id = $1`, string(in.ID)).Scan(append(row.columns(), &lng, &lat, &recordedAt)...)
		if errors.Is(err, pgx.ErrNoRows) {
			return notFound("order")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	state, view, err := row.order()
	if err != nil {
		return nil, err
	}
	if !state.Party(actor) {
		return nil, notFound("order")
	}
	if recordedAt != nil {
		view.RiderLocation = &order.RiderLocation{RiderID: state.RiderID, Location: domain.Point{Lng: *lng, Lat: *lat}, RecordedAt: recordedAt.UTC()}
	}
	view = view.For(actor)
	if err := subjectkeys.OpenOrder(ctx, s.Keys, &view); err != nil {
		return nil, Problem(err)
	}
	return &orderOutput{ETag: httpapi.ETag(view.Version), Token: token, Body: view}, nil
}

// own restricts the list to the caller's own orders. It fails if the parameters ask
// for orders that are not the caller's. Ops and support
// may list all orders.
func (in *listOrdersInput) own(actor domain.Actor) error {
	type parameter struct {
		name  string
		value *httpapi.ID
		role  domain.Role
		own   string
	}
	if actor.Role == domain.Ops || actor.Role == domain.Support {
		return nil
	}
	if in.Dispatch != "" {
		return forbidden("dispatch is for ops.")
	}
	for _, p := range []parameter{
		{"customerId", &in.CustomerID, domain.Customer, actor.Sub},
		{"restaurantId", &in.RestaurantID, domain.Restaurant, actor.RestaurantID},
		{"riderId", &in.RiderID, domain.Rider, actor.Sub},
	} {
		switch {
		case p.role != actor.Role && *p.value != "":
			return forbidden(p.name + " is for others; the list has your own orders.")
		case p.role != actor.Role:
		case *p.value != "" && string(*p.value) != p.own:
			return forbidden("You may list your own orders only.")
		default:
			*p.value = httpapi.ID(p.own)
		}
	}
	return nil
}

func (s *Side) listOrders(ctx context.Context, in *listOrdersInput) (*listOrdersOutput, error) {
	actor := httpapi.Actor(ctx)
	start, err := in.start() // a fault of the request is reported before missing rights
	if err != nil {
		return nil, err
	}
	if err := in.own(actor); err != nil {
		return nil, err
	}
	var rows []orderRow
	token, err := s.read(ctx, in.After, []string{orderModel, paymentModel}, func(ctx context.Context, schemas []string) error {
		sql, args := in.statement(schemas[0], schemas[1], start)
		found, err := s.DB.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		rows, err = pgx.CollectRows(found, func(r pgx.CollectableRow) (row orderRow, err error) {
			err = r.Scan(row.columns()...)
			return row, err
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	out := &listOrdersOutput{}
	out.Body.Items = make([]order.View, 0, len(rows))
	ends := make([]pageEnd, 0, len(rows))
	for i := range rows {
		_, view, err := rows[i].order()
		if err != nil {
			return nil, err
		}
		view = view.For(actor)
		if err := subjectkeys.OpenOrder(ctx, s.Keys, &view); err != nil {
			return nil, Problem(err)
		}
		out.Body.Items = append(out.Body.Items, view)
		ends = append(ends, pageEnd{rows[i].createdAt, view.OrderID})
	}
	if ends, next := cut(ends, in.Limit, func(e *pageEnd) pageEnd { return *e }); next != "" {
		out.Body.Items, out.Body.NextCursor = out.Body.Items[:len(ends)], next
	}
	out.Token = token
	return out, nil
}

// statement returns the statement that reads a page and one row more. Each list has an
// index that has its rows in the order of the list.
//
// There is no index on status, because status changes too often. The indexes have the
// column closed instead. It is the final status of an order, and empty until the order
// has one. The statement reads the rows once for each value of closed that can have a
// wanted status, each time in the order of the index, and merges them. So a list of one
// final status does not read the orders with another one, of which there may be very
// many.
func (in *listOrdersInput) statement(orders, payments string, start pageEnd) (sql string, args []any) {
	var where strings.Builder
	arg := func(v any) string {
		args = append(args, v)
		return "$" + strconv.Itoa(len(args))
	}
	where.WriteString(`(o.created_at, o.id) < (` + arg(start.at) + `::timestamptz, ` + arg(start.id) + `)`)
	for _, f := range []struct {
		column string
		value  httpapi.ID
	}{{"customer_id", in.CustomerID}, {"restaurant_id", in.RestaurantID}, {"rider_id", in.RiderID}} {
		if f.value != "" {
			where.WriteString(` AND o.` + f.column + ` = ` + arg(string(f.value)))
		}
	}
	if in.RiderID != "" {
		where.WriteString(` AND o.rider_id <> ''`) // the predicate of the index
	}
	statuses := make([]string, len(in.Status))
	for i, status := range in.Status {
		statuses[i] = string(status)
	}
	if len(statuses) > 0 {
		where.WriteString(` AND o.status = ANY (` + arg(statuses) + `)`)
	}
	limit := arg(in.Limit + 1)
	const newest = ` ORDER BY o.created_at DESC, o.id DESC LIMIT `
	from := `(SELECT * FROM ` + orders + `.orders o WHERE o.exhausted AND ` + where.String() + newest + limit + `) o`
	if in.Dispatch == "" {
		from = `unnest(` + arg(closedValues(in.Status)) + `::text[]) AS c(closed) CROSS JOIN LATERAL
			(SELECT * FROM ` + orders + `.orders o WHERE o.closed = c.closed AND ` + where.String() + newest + limit + `) o`
	}
	return `SELECT ` + orderColumns + ` FROM ` + from + ` LEFT JOIN ` + payments + `.payments p ON p.id = o.id` + newest + limit, args
}

// closedValues returns the values of the column closed that orders of these statuses
// can have. No statuses means all statuses.
func closedValues(statuses []orderStatus) []string {
	var values []string
	for _, status := range order.Statuses {
		if len(statuses) > 0 && !slices.Contains(statuses, orderStatus(status)) {
			continue
		}
		value := ""
		if status.Closed() {
			value = string(status)
		}
		if !slices.Contains(values, value) {
			values = append(values, value)
		}
	}
	return values
}

func (s *Side) getOrderEvents(ctx context.Context, in *orderInput) (*orderEventsOutput, error) {
	actor := httpapi.Actor(ctx)
	out := &orderEventsOutput{}
	token, err := s.read(ctx, in.After, []string{orderModel}, func(ctx context.Context, schemas []string) error {
		// One statement reads the order and its events, so both are as of the same
		// moment. The state comes with the first event only.
		rows, err := s.DB.Query(ctx, `SELECT coalesce(e.type, ''), coalesce(e.version, 0), coalesce(e.data_version, 1), coalesce(e.at, o.created_at), coalesce(e.actor, ''), coalesce(e.data, ''),
				CASE WHEN coalesce(e.version, 1) = 1 THEN o.state END
			FROM `+schemas[0]+`.orders o LEFT JOIN `+schemas[0]+`.order_events e ON e.order_id = $1
			WHERE o.id = $1 ORDER BY e.version`, string(in.ID))
		if err != nil {
			return err
		}
		out.Body.Items = []orderEvent{}
		var e orderEvent
		var data, text []byte
		var made string // <role>:<sub>
		var state *order.State
		_, err = pgx.ForEachRow(rows, []any{&e.Type, &e.Version, &e.DataVersion, &e.Timestamp, &made, &data, (*pgtype.DriverBytes)(&text)}, func() error {
			if text != nil {
				if state, err = readState[order.State](text); err != nil {
					return err
				}
				if !state.Party(actor) {
					return notFound("order")
				}
			}
			switch {
			case state == nil:
				return notFound("order") // the history lacks the first event
			case e.Version == 0:
				return httpapi.NewProblem(http.StatusGone, "history_removed", "The events of orders of that age were removed from the read model. The order itself is there.")
			}
			opened, err := subjectkeys.OpenEvent(ctx, s.Keys, state.CustomerID, data)
			if err != nil {
				return fmt.Errorf("event %d of order %s: %w", e.Version, in.ID, err)
			}
			seen, err := state.EventData(e.Type, e.DataVersion, opened, actor)
			if err != nil {
				return fmt.Errorf("event %d of order %s: %w", e.Version, in.ID, err)
			}
			e.Timestamp, e.Data, e.Actor = e.Timestamp.UTC(), slices.Clone(seen), nil
			if e.DataVersion == 1 {
				e.DataVersion = 0
			}
			if by, ok := state.EventActor(made, actor); ok {
				e.Actor = &eventActor{by.Role, by.Sub}
			}
			out.Body.Items = append(out.Body.Items, e)
			return nil
		})
		if err == nil && state == nil {
			return notFound("order")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	out.Token = token
	return out, nil
}

// OfferedOrder is an offer that is still open. It has the fields of the payload of the
// message order:available.
type OfferedOrder struct {
	OrderID        string       `json:"orderId"`
	RestaurantID   string       `json:"restaurantId"`
	Location       domain.Point `json:"location"`
	DistanceMeters int          `json:"distanceMeters"`
	ExpiresAt      time.Time    `json:"expiresAt"`
}
