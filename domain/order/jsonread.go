package order

import "tomato/domain"

// What json.go writes without reflection is read without it here, except for views,
// which nobody reads. Fields and their order are those of WriteJSON. TestReadJSON
// compares the result with that of encoding/json.

// ReadJSON implements domain.JSONReadable.
func (i *Item) ReadJSON(r *domain.JSONReader) {
	r.Open()
	i.ItemID = r.Shared("itemId")
	i.Name = r.Shared("name")
	i.UnitPrice = r.Int64("unitPrice")
	i.Quantity = r.Int("quantity")
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (p *PickUp) ReadJSON(r *domain.JSONReader) {
	r.Open()
	p.Name = r.Shared("name")
	p.Location = r.Point("location")
	p.Address = r.SomeShared("address")
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (o *Offer) ReadJSON(r *domain.JSONReader) {
	r.Open()
	o.RiderID = r.Shared("riderId")
	o.Wave = r.Int("wave")
	o.DistanceMeters = r.Int("distanceMeters")
	o.State = OfferState(r.Shared("state"))
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (d *Drop) ReadJSON(r *domain.JSONReader) {
	r.Open()
	d.RiderID = r.Shared("riderId")
	d.ClaimID = r.Int64("claimId")
	d.Round = r.Int("round")
	d.By = domain.Role(r.Shared("by"))
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (s *State) ReadJSON(r *domain.JSONReader) {
	r.Open()
	s.ID = r.String("orderId")
	s.Version = r.Int64("version")
	s.Status = Status(r.Shared("status"))
	s.CustomerID = r.Shared("customerId")
	s.RestaurantID = r.Shared("restaurantId")
	s.Items = domain.ReadJSONList[Item](r, "items")
	s.Amount = r.Int64("amount")
	s.Currency = r.Shared("currency")
	r.Name("pickUp")
	s.PickUp.ReadJSON(r)
	s.DeliverTo = domain.Sealed(r.String("deliverTo"))
	s.ExternalReference = r.SomeString("externalReference")
	s.PaymentID = r.SomeString("paymentId")
	s.PaymentDueAt = r.SomeTime("paymentDueAt")
	s.AcceptBy = r.SomeTime("acceptBy")
	s.ReadyAt = r.SomeTime("readyAt")
	s.Round = r.SomeInt("round")
	s.Wave = r.SomeInt("wave")
	s.WaveOpen = r.SomeBool("waveOpen")
	s.WaveEndsAt = r.SomeTime("waveEndsAt")
	s.Offers = domain.SomeJSONList[Offer](r, "offers")
	s.Drops = domain.SomeJSONList[Drop](r, "drops")
	s.Exhausted = r.SomeBool("exhausted")
	s.RiderID = r.SomeShared("riderId")
	s.RiderName = domain.Sealed(r.SomeString("riderName"))
	s.ClaimID = r.SomeInt64("claimId")
	s.Reason = r.SomeString("reason")
	s.By = domain.Role(r.SomeShared("by"))
	s.CreatedAt = r.SomeTime("createdAt")
	s.UpdatedAt = r.SomeTime("updatedAt")
	s.ClosedAt = r.SomeTime("closedAt")
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (e *OrderPlaced) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.OrderID = r.String("orderId")
	e.CustomerID = r.Shared("customerId")
	e.RestaurantID = r.Shared("restaurantId")
	e.Items = domain.ReadJSONList[Item](r, "items")
	e.Amount = r.Int64("amount")
	e.Currency = r.Shared("currency")
	r.Name("pickUp")
	e.PickUp.ReadJSON(r)
	e.DeliverTo = domain.Sealed(r.String("deliverTo"))
	e.ExternalReference = r.SomeString("externalReference")
	e.PaymentDueAt = r.Time("paymentDueAt")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (e *OrderPaid) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.OrderID = r.String("orderId")
	e.PaymentID = r.String("paymentId")
	e.AcceptBy = r.Time("acceptBy")
	e.Items = domain.ReadJSONList[Item](r, "items")
	e.Amount = r.Int64("amount")
	e.Currency = r.Shared("currency")
	r.Name("pickUp")
	e.PickUp.ReadJSON(r)
	e.DeliverTo = domain.Sealed(r.String("deliverTo"))
	e.ExternalReference = r.SomeString("externalReference")
	e.PlacedAt = r.Time("placedAt")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (e *OrderAccepted) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.OrderID = r.String("orderId")
	e.PrepMinutes = r.SomeInt("prepMinutes")
	e.ReadyAt = r.SomeTime("readyAt")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (e *OrderPreparing) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.OrderID = r.String("orderId")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (e *OrderReadyForRider) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.OrderID = r.String("orderId")
	e.RestaurantID = r.Shared("restaurantId")
	e.Location = r.Point("location")
	e.Round = r.Int("round")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (o *OfferedRider) ReadJSON(r *domain.JSONReader) {
	r.Open()
	o.RiderID = r.Shared("riderId")
	o.DistanceMeters = r.Int("distanceMeters")
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (e *OrderOffered) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.OrderID = r.String("orderId")
	e.Round = r.Int("round")
	e.Wave = r.Int("wave")
	e.Riders = domain.ReadJSONList[OfferedRider](r, "riders")
	e.Location = r.Point("location")
	e.ExpiresAt = r.Time("expiresAt")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (e *OfferDeclined) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.OrderID = r.String("orderId")
	e.RiderID = r.Shared("riderId")
	e.Round = r.Int("round")
	e.Wave = r.Int("wave")
	e.WaveOver = r.Bool("waveOver")
	e.Location = r.Point("location")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (e *OffersExpired) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.OrderID = r.String("orderId")
	e.Round = r.Int("round")
	e.Wave = r.Int("wave")
	e.Riders = r.Strings("riders")
	e.Location = r.Point("location")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (e *RiderAssigned) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.OrderID = r.String("orderId")
	e.RiderID = r.Shared("riderId")
	e.RiderName = domain.Sealed(r.String("riderName"))
	e.ClaimID = r.Int64("claimId")
	e.Round = r.Int("round")
	e.Wave = r.Int("wave")
	e.Riders = r.Strings("riders")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (e *OrderPickedUp) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.OrderID = r.String("orderId")
	e.RiderID = r.Shared("riderId")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (e *OrderDelivered) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.OrderID = r.String("orderId")
	e.RiderID = r.Shared("riderId")
	e.ClaimID = r.Int64("claimId")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (e *OrderCancelled) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.OrderID = r.String("orderId")
	e.Reason = r.String("reason")
	e.By = domain.Role(r.Shared("by"))
	e.PaymentID = r.SomeString("paymentId")
	e.RiderID = r.SomeShared("riderId")
	e.ClaimID = r.SomeInt64("claimId")
	e.Riders = r.Strings("riders")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}
