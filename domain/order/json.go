package order

import "tomato/domain"

// The events of most orders, the view that every command answers with, and the state
// in snapshots write their JSON without reflection. Fields and their order are those
// of the structs. TestJSON compares the result with that of encoding/json.

// WriteJSON implements domain.JSONWriter.
func (i Item) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("itemId", i.ItemID)
	j.String("name", i.Name)
	j.Int("unitPrice", i.UnitPrice)
	j.Int("quantity", int64(i.Quantity))
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (p PickUp) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("name", p.Name)
	j.Name("location")
	p.Location.WriteJSON(j)
	j.SomeString("address", p.Address)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (d DeliverTo) WriteJSON(j *domain.JSON) {
	j.Open()
	if d.Location != nil {
		j.Name("location")
		d.Location.WriteJSON(j)
	}
	j.SomeString("address", d.Address)
	j.SomeString("instructions", d.Instructions)
	if d.Erased {
		j.Bool("erased", true)
	}
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (d Dispatch) WriteJSON(j *domain.JSON) {
	j.Open()
	j.Int("round", int64(d.Round))
	j.Int("wave", int64(d.Wave))
	j.Bool("exhausted", d.Exhausted)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (l RiderLocation) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("riderId", l.RiderID)
	j.Name("location")
	l.Location.WriteJSON(j)
	j.Time("recordedAt", l.RecordedAt)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (v *View) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("orderId", v.OrderID)
	j.Int("version", v.Version)
	j.String("status", string(v.Status))
	j.String("paymentStatus", string(v.PaymentStatus))
	j.SomeString("customerId", v.CustomerID)
	j.String("restaurantId", v.RestaurantID)
	j.SomeString("riderId", v.RiderID)
	if len(v.Items) > 0 {
		domain.JSONList(j, "items", v.Items)
	}
	j.Int("amount", v.Amount)
	j.String("currency", v.Currency)
	j.Name("pickUp")
	v.PickUp.WriteJSON(j)
	if v.DeliverTo != nil {
		j.Name("deliverTo")
		v.DeliverTo.WriteJSON(j)
	}
	j.SomeString("externalReference", v.ExternalReference)
	j.SomeString("riderName", v.RiderName)
	j.SomeTime("paymentDueAt", v.PaymentDueAt)
	j.SomeTime("acceptBy", v.AcceptBy)
	j.SomeTime("readyAt", v.ReadyAt)
	if v.Dispatch != nil {
		j.Name("dispatch")
		v.Dispatch.WriteJSON(j)
	}
	j.SomeString("reason", v.Reason)
	j.SomeString("by", string(v.By))
	if v.RiderLocation != nil {
		j.Name("riderLocation")
		v.RiderLocation.WriteJSON(j)
	}
	j.Time("createdAt", v.CreatedAt)
	j.Time("updatedAt", v.UpdatedAt)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (o Offer) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("riderId", o.RiderID)
	j.Int("wave", int64(o.Wave))
	j.Int("distanceMeters", int64(o.DistanceMeters))
	j.String("state", string(o.State))
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (d Drop) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("riderId", d.RiderID)
	j.Int("claimId", d.ClaimID)
	j.Int("round", int64(d.Round))
	j.String("by", string(d.By))
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (s *State) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("orderId", s.ID)
	j.Int("version", s.Version)
	j.String("status", string(s.Status))
	j.String("customerId", s.CustomerID)
	j.String("restaurantId", s.RestaurantID)
	domain.JSONList(j, "items", s.Items)
	j.Int("amount", s.Amount)
	j.String("currency", s.Currency)
	j.Name("pickUp")
	s.PickUp.WriteJSON(j)
	j.String("deliverTo", string(s.DeliverTo))
	j.SomeString("externalReference", s.ExternalReference)
	j.SomeString("paymentId", s.PaymentID)
	j.SomeTime("paymentDueAt", s.PaymentDueAt)
	j.SomeTime("acceptBy", s.AcceptBy)
	j.SomeTime("readyAt", s.ReadyAt)
	j.SomeInt("round", int64(s.Round))
	j.SomeInt("wave", int64(s.Wave))
	if s.WaveOpen {
		j.Bool("waveOpen", true)
	}
	j.SomeTime("waveEndsAt", s.WaveEndsAt)
	if len(s.Offers) > 0 {
		domain.JSONList(j, "offers", s.Offers)
	}
	if len(s.Drops) > 0 {
		domain.JSONList(j, "drops", s.Drops)
	}
	if s.Exhausted {
		j.Bool("exhausted", true)
	}
	j.SomeString("riderId", s.RiderID)
	j.SomeString("riderName", string(s.RiderName))
	j.SomeInt("claimId", s.ClaimID)
	j.SomeString("reason", s.Reason)
	j.SomeString("by", string(s.By))
	j.SomeTime("createdAt", s.CreatedAt)
	j.SomeTime("updatedAt", s.UpdatedAt)
	j.SomeTime("closedAt", s.ClosedAt)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (e OrderPlaced) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("orderId", e.OrderID)
	j.String("customerId", e.CustomerID)
	j.String("restaurantId", e.RestaurantID)
	domain.JSONList(j, "items", e.Items)
	j.Int("amount", e.Amount)
	j.String("currency", e.Currency)
	j.Name("pickUp")
	e.PickUp.WriteJSON(j)
	j.String("deliverTo", string(e.DeliverTo))
	j.SomeString("externalReference", e.ExternalReference)
	j.Time("paymentDueAt", e.PaymentDueAt)
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (e OrderPaid) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("orderId", e.OrderID)
	j.String("paymentId", e.PaymentID)
	j.Time("acceptBy", e.AcceptBy)
	domain.JSONList(j, "items", e.Items)
	j.Int("amount", e.Amount)
	j.String("currency", e.Currency)
	j.Name("pickUp")
	e.PickUp.WriteJSON(j)
	j.String("deliverTo", string(e.DeliverTo))
	j.SomeString("externalReference", e.ExternalReference)
	j.Time("placedAt", e.PlacedAt)
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (e OrderAccepted) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("orderId", e.OrderID)
	j.SomeInt("prepMinutes", int64(e.PrepMinutes))
	j.SomeTime("readyAt", e.ReadyAt)
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (e OrderPreparing) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("orderId", e.OrderID)
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (e OrderReadyForRider) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("orderId", e.OrderID)
	j.String("restaurantId", e.RestaurantID)
	j.Name("location")
	e.Location.WriteJSON(j)
	j.Int("round", int64(e.Round))
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (o OfferedRider) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("riderId", o.RiderID)
	j.Int("distanceMeters", int64(o.DistanceMeters))
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (e OrderOffered) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("orderId", e.OrderID)
	j.Int("round", int64(e.Round))
	j.Int("wave", int64(e.Wave))
	domain.JSONList(j, "riders", e.Riders)
	j.Name("location")
	e.Location.WriteJSON(j)
	j.Time("expiresAt", e.ExpiresAt)
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (e OfferDeclined) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("orderId", e.OrderID)
	j.String("riderId", e.RiderID)
	j.Int("round", int64(e.Round))
	j.Int("wave", int64(e.Wave))
	j.Bool("waveOver", e.WaveOver)
	j.Name("location")
	e.Location.WriteJSON(j)
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (e OffersExpired) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("orderId", e.OrderID)
	j.Int("round", int64(e.Round))
	j.Int("wave", int64(e.Wave))
	j.Strings("riders", e.Riders)
	j.Name("location")
	e.Location.WriteJSON(j)
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (e RiderAssigned) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("orderId", e.OrderID)
	j.String("riderId", e.RiderID)
	j.String("riderName", string(e.RiderName))
	j.Int("claimId", e.ClaimID)
	j.Int("round", int64(e.Round))
	j.Int("wave", int64(e.Wave))
	j.Strings("riders", e.Riders)
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (e OrderPickedUp) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("orderId", e.OrderID)
	j.String("riderId", e.RiderID)
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (e OrderDelivered) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("orderId", e.OrderID)
	j.String("riderId", e.RiderID)
	j.Int("claimId", e.ClaimID)
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}

// WriteJSON implements domain.JSONWriter.
func (e OrderCancelled) WriteJSON(j *domain.JSON) {
	j.Open()
	j.String("orderId", e.OrderID)
	j.String("reason", e.Reason)
	j.String("by", string(e.By))
	j.SomeString("paymentId", e.PaymentID)
	j.SomeString("riderId", e.RiderID)
	j.SomeInt("claimId", e.ClaimID)
	j.Strings("riders", e.Riders)
	j.Name("ctx")
	e.Ctx.WriteJSON(j)
	j.Close()
}
