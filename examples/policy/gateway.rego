# What the gateway asks with OPA_POLICY=llm.gateway: POST /v1/data/llm/gateway.
package llm.gateway

default allow := false

# Models by plan; a tenant's plan is in its metadata.
models := {
	"free": {"echo", "gpt-4o-mini"},
	"paid": {"echo", "gpt-4o-mini", "gpt-4o", "claude-sonnet-4-6"},
}

plan := object.get(input.tenant.metadata, "plan", "free")

# What costs nothing, such as the list of models, is for everybody with a key.
allow if input.kind == "authenticated"

allow if {
	input.model in models[plan]
	not denied
}

denied if "web_search" in object.get(input, "tools", [])

reason := "web search is not allowed here" if denied

reason := sprintf("%s is not in the plan '%s'", [input.model, plan]) if {
	not denied
	not input.model in models[plan]
}

# A free plan gets short answers, whatever it asks for.
obligations := {"max_tokens": 256} if plan == "free"

obligations := {} if plan != "free"
