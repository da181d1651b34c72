package payment

import "tomato/domain"

// What json.go writes without reflection is read without it here. Fields and their order
// are those of WriteJSON. TestReadJSON compares the result with that of encoding/json.

// ReadJSON implements domain.JSONReadable.
func (e *PaymentRequested) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.OrderID = r.String("orderId")
	e.Provider = r.Shared("provider")
	e.GatewayOrderID = r.String("gatewayOrderId")
	e.Amount = r.Int64("amount")
	e.Currency = r.Shared("currency")
	e.Booked = r.Bool("booked")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (e *PaymentSuccess) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.OrderID = r.String("orderId")
	e.PaymentID = r.String("paymentId")
	e.Amount = r.Int64("amount")
	e.Currency = r.Shared("currency")
	e.GatewayOrderID = r.String("gatewayOrderId")
	e.Booked = r.Bool("booked")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (e *PaymentFailed) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.OrderID = r.String("orderId")
	e.PaymentID = r.String("paymentId")
	e.Amount = r.Int64("amount")
	e.Currency = r.Shared("currency")
	e.GatewayOrderID = r.String("gatewayOrderId")
	e.Reason = r.SomeShared("reason")
	e.Booked = r.Bool("booked")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (e *RefundRequested) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.OrderID = r.SomeString("orderId")
	e.PaymentID = r.String("paymentId")
	e.RefundID = r.String("refundId")
	e.Amount = r.Int64("amount")
	e.Currency = r.Shared("currency")
	e.Reason = r.Shared("reason")
	e.Booked = r.Bool("booked")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (e *RefundSuccess) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.OrderID = r.SomeString("orderId")
	e.PaymentID = r.String("paymentId")
	e.RefundID = r.String("refundId")
	e.Amount = r.Int64("amount")
	e.Currency = r.Shared("currency")
	e.Booked = r.Bool("booked")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (a *Attempt) ReadJSON(r *domain.JSONReader) {
	r.Open()
	a.PaymentID = r.Shared("paymentId")
	a.Amount = r.Int64("amount")
	a.Currency = r.Shared("currency")
	a.State = AttemptState(r.Shared("state"))
	a.GatewayStatus = r.Shared("gatewayStatus")
	a.Reason = r.SomeShared("reason")
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (f *Refund) ReadJSON(r *domain.JSONReader) {
	r.Open()
	f.RefundID = r.String("refundId")
	f.PaymentID = r.Shared("paymentId")
	f.Amount = r.Int64("amount")
	f.Currency = r.Shared("currency")
	f.Status = RefundStatus(r.Shared("status"))
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (s *State) ReadJSON(r *domain.JSONReader) {
	r.Open()
	s.ID = r.Shared("id")
	s.OrderID = r.SomeShared("orderId")
	s.Version = r.Int64("version")
	s.Status = Status(r.SomeShared("status"))
	s.Provider = r.SomeShared("provider")
	s.GatewayOrderID = r.SomeString("gatewayOrderId")
	s.Amount = r.SomeInt64("amount")
	s.Currency = r.SomeShared("currency")
	s.CustomerID = r.SomeShared("customerId")
	s.RestaurantID = r.SomeShared("restaurantId")
	s.Booked = r.SomeShared("booked")
	s.Attempts = domain.SomeJSONList[Attempt](r, "attempts")
	s.Refunds = domain.SomeJSONList[Refund](r, "refunds")
	s.CreatedAt = r.SomeTime("createdAt")
	s.UpdatedAt = r.SomeTime("updatedAt")
	r.Close()
}
