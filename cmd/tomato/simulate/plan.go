package simulate

import "math/rand/v2"

// payment is how an order's customer pays.
type payment uint8

const (
	payPlain payment = iota
	payDuplicate
	payReordered
	payOldSecret
	payDropped     // the webhook is lost; the gateway sends it again
	payDroppedGone // the webhook is lost, and the customer cancels
	payWrongSignature
	payWrongAmount // another amount first, then the right one
	payFailedFirst
	payAuthorizedFirst
	payTwice
	payLate // cancelled while unpaid, and paid all the same
	payNever
)

// faults are the gateway's, as its pay call names them.
var faults = map[payment]string{
	payDuplicate: "duplicate", payReordered: "reordered", payOldSecret: "old_secret",
	payDropped: "dropped", payDroppedGone: "dropped", payWrongSignature: "wrong_signature",
}

// ending is who ends an order before its time, and where.
type ending uint8

const (
	endNone ending = iota
	endReject
	endCustomerUnpaid
	endCustomerPaid
	endCustomerAccepted
	endRestaurantPreparing
	endRestaurantReady
	endOpsAssigned
)

// plan is what is to become of one order. It follows from seed and number
// alone, so that a run can be repeated; who wins its races is not in it.
type plan struct {
	pay      payment
	end      ending
	drop     bool // its first rider gives it back
	again    bool // it is placed twice at once, with one Idempotency-Key
	readBack bool // it is read with the Consistency-Token right after placing
	watch    bool // its customer joins the order's room
	wrongBy  int64
}

func planOf(seed int64, n int) plan {
	r := rand.New(rand.NewPCG(uint64(seed), uint64(n)+1))
	p := plan{wrongBy: 1 + r.Int64N(500)}
	if r.IntN(2) == 0 {
		p.wrongBy = -p.wrongBy
	}
	p.pay = pick(r, payPlain,
		odds[payment]{4, payDuplicate}, odds[payment]{4, payReordered}, odds[payment]{3, payOldSecret},
		odds[payment]{2, payDropped}, odds[payment]{1, payDroppedGone}, odds[payment]{2, payWrongSignature},
		odds[payment]{3, payWrongAmount}, odds[payment]{3, payFailedFirst}, odds[payment]{3, payAuthorizedFirst},
		odds[payment]{3, payTwice}, odds[payment]{1, payLate}, odds[payment]{1, payNever})
	p.end = pick(r, endNone,
		odds[ending]{3, endReject}, odds[ending]{2, endCustomerUnpaid}, odds[ending]{2, endCustomerPaid},
		odds[ending]{2, endCustomerAccepted}, odds[ending]{1, endRestaurantPreparing},
		odds[ending]{1, endRestaurantReady}, odds[ending]{1, endOpsAssigned})
	if p.pay == payLate || p.pay == payDroppedGone {
		p.end = endCustomerUnpaid
	} else if p.end == endCustomerUnpaid && p.pay != payNever {
		p.pay = payNever
	} else if p.pay == payNever {
		p.end = endNone
	}
	p.drop = r.IntN(100) < 4
	p.again = r.IntN(100) < 3
	p.readBack = r.IntN(100) < 10
	p.watch = r.IntN(100) < 10
	return p
}

type odds[T any] struct {
	percent int
	of      T
}

func pick[T any](r *rand.Rand, otherwise T, of ...odds[T]) T {
	n := r.IntN(100)
	for _, o := range of {
		if n < o.percent {
			return o.of
		}
		n -= o.percent
	}
	return otherwise
}
