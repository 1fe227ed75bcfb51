// Generation by an engine that schedules requests itself: tokens come in, text goes out.

#pragma once

#include "base/cancellation.hpp"
#include "engine/answer.hpp"
#include "engine/timings.hpp"
#include "session/inflight.hpp"

namespace nvlm {

// Submit one request and follow it until its answer is finished. It is ended in the session whenever this
// returns or throws before its last token: by a stop string, a cancellation, or an error of `on_text`.
void answer_inflight(InflightSession& session, const TokenRequest& tokens, const Request& request,
                     Answer& answer, StageTimer& timer, Cancellation& cancellation);

}  // namespace nvlm
