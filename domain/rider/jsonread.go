package rider

import "tomato/domain"

// What json.go writes without reflection is read without it here, and so are positions.
// Fields and their order are those of the structs. TestReadJSON compares the result with
// that of encoding/json.

// ReadJSON implements domain.JSONReadable.
func (e *RiderClaimed) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.RiderID = r.Shared("riderId")
	e.RiderName = domain.Sealed(r.String("riderName"))
	e.ClaimID = r.Int64("claimId")
	e.OrderID = r.String("orderId")
	e.Round = r.Int("round")
	e.Wave = r.Int("wave")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (e *RiderReleased) ReadJSON(r *domain.JSONReader) {
	r.Open()
	e.RiderID = r.Shared("riderId")
	e.ClaimID = r.Int64("claimId")
	e.OrderID = r.String("orderId")
	r.Name("ctx")
	e.Ctx.ReadJSON(r)
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (c *Claim) ReadJSON(r *domain.JSONReader) {
	r.Open()
	c.ID = r.Int64("claimId")
	c.OrderID = r.String("orderId")
	c.Round = r.Int("round")
	c.Wave = r.Int("wave")
	c.CustomerID = r.Shared("customerId")
	c.RestaurantID = r.Shared("restaurantId")
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (s *State) ReadJSON(r *domain.JSONReader) {
	r.Open()
	s.ID = r.Shared("riderId")
	s.Version = r.Int64("version")
	s.Name = domain.Sealed(r.String("name"))
	s.Vehicle = r.SomeShared("vehicle")
	s.Verification = Verification(r.Shared("verification"))
	s.Online = r.SomeBool("online")
	if r.Has("claim") {
		s.Claim = &Claim{}
		s.Claim.ReadJSON(r)
	}
	s.CreatedAt = r.SomeTime("createdAt")
	s.UpdatedAt = r.SomeTime("updatedAt")
	r.Close()
}

// ReadJSON implements domain.JSONReadable.
func (p *Position) ReadJSON(r *domain.JSONReader) {
	r.Open()
	p.RiderID = r.Shared("riderId")
	p.Location = r.Point("location")
	p.RecordedAt = r.Time("recordedAt")
	r.Close()
}
