package simulate

import (
	"math/rand/v2"
)

// payment says how the customer pays, and how the gateway behaves.
type payment uint8

const (
	payPlain payment = iota
	payDuplicate
	payReordered
	payOldSecret
	payDropped          // the webhook is lost; the gateway sends it again
	payDroppedCancelled // the webhook is lost, and the customer cancels
	payWrongSignature
	payWrongAmount // first another amount, then the right one
	payFailedFirst
	payAuthorizedFirst
	payTwice
	payLate // cancelled while unpaid, and then paid nevertheless
	payNever
)

// gatewayFaults maps a payment to the fault that the simulated gateway is told to
// have. The names are those of the gateway's pay call.
var gatewayFaults = map[payment]string{
	payDuplicate: "duplicate", payReordered: "reordered", payOldSecret: "old_secret",
	payDropped: "dropped", payDroppedCancelled: "dropped", payWrongSignature: "wrong_signature",
}

// ending says who ends the order before it is delivered, and in which status.
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

// plan says what is to happen to one order. It depends only on the seed and the
// order's number, so that a run can be repeated. Who wins a race is not planned.
type plan struct {
	payment    payment
	ending     ending
	riderDrops bool  // the first rider drops it
	placeTwice bool  // it is placed twice at the same time with one Idempotency-Key
	readBack   bool  // it is read with its Consistency-Token after it was placed
	joinRoom   bool  // the customer joins the order's room
	wrongBy    int64 // minor units that payWrongAmount adds to the amount; not 0
}

// planOf returns the plan of the order with number n.
func planOf(seed int64, n int) plan {
	r := rand.New(rand.NewPCG(uint64(seed), uint64(n)+1))
	p := plan{wrongBy: 1 + r.Int64N(500)}
	if r.IntN(2) == 0 {
		p.wrongBy = -p.wrongBy
	}
	p.payment = pick(r, payPlain,
		chance[payment]{4, payDuplicate}, chance[payment]{4, payReordered}, chance[payment]{3, payOldSecret},
		chance[payment]{2, payDropped}, chance[payment]{1, payDroppedCancelled}, chance[payment]{2, payWrongSignature},
		chance[payment]{3, payWrongAmount}, chance[payment]{3, payFailedFirst}, chance[payment]{3, payAuthorizedFirst},
		chance[payment]{3, payTwice}, chance[payment]{1, payLate}, chance[payment]{1, payNever})
	p.ending = pick(r, endNone,
		chance[ending]{3, endReject}, chance[ending]{2, endCustomerUnpaid}, chance[ending]{2, endCustomerPaid},
		chance[ending]{2, endCustomerAccepted}, chance[ending]{1, endRestaurantPreparing},
		chance[ending]{1, endRestaurantReady}, chance[ending]{1, endOpsAssigned})
	if p.payment == payLate || p.payment == payDroppedCancelled {
		p.ending = endCustomerUnpaid
	} else if p.ending == endCustomerUnpaid && p.payment != payNever {
		p.payment = payNever
	} else if p.payment == payNever {
		p.ending = endNone
	}
	p.riderDrops = r.IntN(100) < 4
	p.placeTwice = r.IntN(100) < 3
	p.readBack = r.IntN(100) < 10
	p.joinRoom = r.IntN(100) < 10
	return p
}

// chance is a value with its share of all draws, in percent.
type chance[Value any] struct {
	percent int
	of      Value
}

// pick draws one of the values with its chance. It returns otherwise with the
// chance that is left.
func pick[Value any](r *rand.Rand, otherwise Value, of ...chance[Value]) Value {
	n := r.IntN(100)
	for _, o := range of {
		if n < o.percent {
			return o.of
		}
		n -= o.percent
	}
	return otherwise
}
