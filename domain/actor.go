package domain

// Role is the role of a caller. The zero value is nobody's.
type Role string

// The roles of the contract, and System for what Tomato does by itself (policies,
// deadlines). No access token has the role System.
const (
	Customer   Role = "customer"
	Restaurant Role = "restaurant"
	Rider      Role = "rider"
	Ops        Role = "ops"
	System     Role = "system"
)

// Actor is who issues a command or a query.
type Actor struct {
	Sub          string `json:"sub"`
	Role         Role   `json:"role"`
	RestaurantID string `json:"restaurantId,omitempty"` // set for role restaurant only
}

// SystemActor is the actor of policies and deadlines.
var SystemActor = Actor{Sub: "system", Role: System}
