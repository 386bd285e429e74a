# Completion of osp for fish 3 and later. Written by `osp completion`: changes made here get lost.

# The command, osp for none yet, and how many arguments it has got.
function __osp_place
    set -l valued 'generate --style' \
        'generate -s' \
        'generate --output' \
        'generate -o' \
        'generate --seed' \
        'generate --count' \
        'generate -c' \
        'generate --negative-prompt' \
        'generate -n' \
        'generate --text' \
        'generate --size' \
        'generate --frames' \
        'generate -f' \
        'generate --seconds' \
        'generate -t' \
        'generate --fps' \
        'generate --steps' \
        'generate --cfg' \
        'generate -g' \
        'generate --cutoff' \
        'generate --shift' \
        'generate --sampler' \
        'generate --lora' \
        'generate -l' \
        'generate --cache' \
        'generate --cache-start' \
        'generate --preview' \
        'generate --pick' \
        'generate --from' \
        'generate --from-file' \
        'generate -F' \
        'generate --model' \
        'generate -m' \
        'generate --device' \
        'generate --dtype' \
        'generate --offload' \
        'generate --quant' \
        'generate --attention' \
        'generate --gpus' \
        'generate --max-vram' \
        'generate --max-ram' \
        'generate --config' \
        'stylize --style' \
        'stylize -s' \
        'stylize --output' \
        'stylize -o' \
        'stylize --seed' \
        'stylize --count' \
        'stylize -c' \
        'stylize --strength' \
        'stylize --negative-prompt' \
        'stylize -n' \
        'stylize --size' \
        'stylize --frames' \
        'stylize -f' \
        'stylize --seconds' \
        'stylize -t' \
        'stylize --fps' \
        'stylize --steps' \
        'stylize --cfg' \
        'stylize -g' \
        'stylize --cutoff' \
        'stylize --shift' \
        'stylize --sampler' \
        'stylize --lora' \
        'stylize -l' \
        'stylize --cache' \
        'stylize --cache-start' \
        'stylize --preview' \
        'stylize --pick' \
        'stylize --from' \
        'stylize --from-file' \
        'stylize -F' \
        'stylize --model' \
        'stylize -m' \
        'stylize --device' \
        'stylize --dtype' \
        'stylize --offload' \
        'stylize --quant' \
        'stylize --attention' \
        'stylize --gpus' \
        'stylize --max-vram' \
        'stylize --max-ram' \
        'stylize --config' \
        'extend --style' \
        'extend -s' \
        'extend --text' \
        'extend --output' \
        'extend -o' \
        'extend --sink' \
        'extend --seconds' \
        'extend -t' \
        'extend --frames' \
        'extend -f' \
        'extend --fps' \
        'extend --from-file' \
        'extend -F' \
        'extend --from' \
        'extend --resume' \
        'extend --seed' \
        'extend --negative-prompt' \
        'extend -n' \
        'extend --size' \
        'extend --steps' \
        'extend --cfg' \
        'extend -g' \
        'extend --cutoff' \
        'extend --shift' \
        'extend --sampler' \
        'extend --context' \
        'extend --latent-frames' \
        'extend --stages' \
        'extend --anchor-color' \
        'extend --lora' \
        'extend -l' \
        'extend --cache' \
        'extend --cache-start' \
        'extend --model' \
        'extend -m' \
        'extend --device' \
        'extend --dtype' \
        'extend --offload' \
        'extend --quant' \
        'extend --attention' \
        'extend --max-vram' \
        'extend --max-ram' \
        'extend --config' \
        'train-lora --out' \
        'train-lora -o' \
        'train-lora --model' \
        'train-lora -m' \
        'train-lora --mode' \
        'train-lora --condition' \
        'train-lora --trigger' \
        'train-lora --rank' \
        'train-lora --alpha' \
        'train-lora --targets' \
        'train-lora --size' \
        'train-lora --frames' \
        'train-lora -f' \
        'train-lora --fps' \
        'train-lora --stride' \
        'train-lora --windows' \
        'train-lora --latent-frames' \
        'train-lora --epochs' \
        'train-lora --max-steps' \
        'train-lora --batch-size' \
        'train-lora --accumulate' \
        'train-lora --lr' \
        'train-lora --weight-decay' \
        'train-lora --betas' \
        'train-lora --eps' \
        'train-lora --max-grad-norm' \
        'train-lora --optimizer' \
        'train-lora --lr-schedule' \
        'train-lora --warmup' \
        'train-lora --ema' \
        'train-lora --seed' \
        'train-lora --caption-drop' \
        'train-lora --cutoff' \
        'train-lora --timesteps' \
        'train-lora --sigma-shift' \
        'train-lora --sigma-power' \
        'train-lora --device' \
        'train-lora --dtype' \
        'train-lora --quant' \
        'train-lora --gpus' \
        'train-lora --context-parallel' \
        'train-lora --max-vram' \
        'train-lora --max-ram' \
        'train-lora --swap-blocks' \
        'train-lora --save-every' \
        'train-lora --keep' \
        'train-lora --sample-every' \
        'train-lora --sample-prompt' \
        'train-lora --sample-image' \
        'train-lora --save-format' \
        'train-lora --log' \
        'train-lora --cache-dir' \
        'train-lora --title' \
        'train-lora --resume' \
        'train-lora --config' \
        'styles --gallery' \
        'styles --image' \
        'download --local' \
        'download --revision' \
        'download --include' \
        'download --exclude' \
        'download --mirror' \
        'download --jobs' \
        'download --limit-rate' \
        'bench --photos' \
        'bench --out' \
        'bench --weights' \
        'bench --model' \
        'bench -m' \
        'bench --caches' \
        'bench --steps' \
        'bench --style' \
        'bench -s' \
        'models inspect --model' \
        'models inspect -m' \
        'dataset check --model' \
        'dataset check -m' \
        'dataset check --mode' \
        'dataset check --condition' \
        'dataset check --size' \
        'dataset check --frames' \
        'dataset check -f' \
        'dataset check --fps' \
        'dataset check --stride' \
        'dataset check --windows' \
        'dataset check --seed' \
        'dataset check --report' \
        'dataset build --style' \
        'dataset build -s' \
        'dataset build --output' \
        'dataset build -o' \
        'dataset build --frames' \
        'dataset build -f' \
        'dataset build --fps' \
        'dataset build --size' \
        'dataset build --count' \
        'dataset build -c' \
        'dataset build --seed' \
        'dataset build --caption' \
        'dataset build --prompt' \
        'dataset build --stylizer' \
        'dataset build --animator' \
        'dataset build --judge' \
        'dataset build --min-seconds' \
        'dataset build --max-seconds' \
        'dataset build --min-side' \
        'dataset build --device'
    set -l nested 'models inspect' 'dataset check' 'dataset build'
    set -l words (commandline -opc)
    set -e words[1]
    set -l inside osp
    set -l place 0
    set -l waiting 0
    set -l ended 0
    for word in $words
        if test $waiting = 1
            set waiting 0
        else if test $ended = 0; and string match -q -- -- $word
            set ended 1
        else if test $ended = 0; and string match -q -r -- '^-.' $word
            contains -- "$inside $word" $valued; and set waiting 1
        else if test "$inside" = osp
            set inside $word
        else if test $place = 0; and contains -- "$inside $word" $nested
            set inside "$inside $word"
        else
            set place (math $place + 1)
        end
    end
    echo $inside
    echo $place
end

function __osp_in
    set -l now (__osp_place)
    test "$now[1]" = "$argv[1]"
end

function __osp_at
    set -l now (__osp_place)
    test "$now[1] $now[2]" = "$argv[1] $argv[2]"
end

# Folders, and the files that fit the pattern.
function __osp_files
    set -l start (commandline -ct | string replace -r -- '^--[^=]*=' '')
    # Asked as for a command without a name, fish completes files and knows all its quotes.
    complete -C "'' $start" | string match -r -i -- "^.*(?:/|$argv[1])(?:\t.*)?\$"
end

function __osp_values_animator
    printf '%s\t%s\n' \
        'procedural' '' \
        'osp-mini' 'Built-in small model for any laptop: camera moves, some scenery, thirteen looks; soft' \
        'osp-mini-live' 'The built-in model in 4 steps: the quickest clip, a little less exact' \
        'flashi2v-1.3b' 'Fourier-guided latent shifting on Wan2.1 1.3B; needs a GPU and its weights' \
        'uniworld-osp2-14b' 'The paper\'s model: FlashI2V 14B led by Qwen2.5-VL-7B; needs a large GPU and its weights' \
        'wan2.1-i2v-14b-480p' 'Moves pictures by plain Wan2.1 14B at 480p, without latent shifting; needs a large GPU' \
        'wan2.1-i2v-14b-720p' 'Moves pictures by plain Wan2.1 14B at 720p, without latent shifting; needs a large GPU'
end

function __osp_values_attention
    printf '%s\t%s\n' \
        'auto' '' \
        'sdpa' '' \
        'flash' '' \
        'sage' ''
end

function __osp_values_cache
    printf '%s\t%s\n' \
        'none' '' \
        'teacache' '' \
        'fbcache' '' \
        'magcache' ''
end

function __osp_values_condition
    printf '%s\t%s\n' \
        'auto' '' \
        'first' '' \
        'source' '' \
        'plain' ''
end

function __osp_values_device
    printf '%s\t%s\n' \
        'auto' '' \
        'cpu' '' \
        'cuda' '' \
        'mps' ''
end

function __osp_values_document
    printf '%s\t%s\n' \
        'events' 'one line of --json' \
        'recipe' 'the sidecar of a video, and the comment inside it' \
        'doctor' 'osp doctor --json'
end

function __osp_values_dtype
    printf '%s\t%s\n' \
        'auto' '' \
        'bfloat16' '' \
        'float16' '' \
        'float32' ''
end

function __osp_values_frozen_quant
    printf '%s\t%s\n' \
        'none' '' \
        'fp8' ''
end

function __osp_values_going_on
    printf '%s\t%s\n' \
        'auto' '' \
        'never' ''
end

function __osp_values_log
    printf '%s\t%s\n' \
        'jsonl' '' \
        'tensorboard' ''
end

function __osp_values_lr_schedule
    printf '%s\t%s\n' \
        'constant' '' \
        'linear' '' \
        'cosine' ''
end

function __osp_values_mode
    printf '%s\t%s\n' \
        'flash' '' \
        't2v' '' \
        'inpaint' ''
end

function __osp_values_model
    printf '%s\t%s\n' \
        'osp-mini' 'Built-in small model for any laptop: camera moves, some scenery, thirteen looks; soft' \
        'osp-mini-live' 'The built-in model in 4 steps: the quickest clip, a little less exact' \
        'flashi2v-1.3b' 'Fourier-guided latent shifting on Wan2.1 1.3B; needs a GPU and its weights' \
        'helios-14b-distilled' 'Endless video in few steps, with osp extend; needs a large GPU and its weights' \
        'qwen2.5-vl-7b' 'A part of other models: reads prompts for uniworld-osp2-14b; makes no videos' \
        'uniworld-osp2-14b' 'The paper\'s model: FlashI2V 14B led by Qwen2.5-VL-7B; needs a large GPU and its weights' \
        'wan2.1-i2v-14b-480p' 'Moves pictures by plain Wan2.1 14B at 480p, without latent shifting; needs a large GPU' \
        'wan2.1-i2v-14b-720p' 'Moves pictures by plain Wan2.1 14B at 720p, without latent shifting; needs a large GPU' \
        'wan2.1-t2v-1.3b' 'Text to video by plain Wan2.1 1.3B, with --text; needs a GPU and its weights' \
        'wan2.1-t2v-14b' 'Text to video by plain Wan2.1 14B, with --text; needs a large GPU and its weights'
end

function __osp_values_models
    printf '%s\t%s\n' \
        'osp-mini' 'Built-in small model for any laptop: camera moves, some scenery, thirteen looks; soft' \
        'osp-mini-live' 'The built-in model in 4 steps: the quickest clip, a little less exact' \
        'flashi2v-1.3b' 'Fourier-guided latent shifting on Wan2.1 1.3B; needs a GPU and its weights' \
        'helios-14b-distilled' 'Endless video in few steps, with osp extend; needs a large GPU and its weights' \
        'qwen2.5-vl-7b' 'A part of other models: reads prompts for uniworld-osp2-14b; makes no videos' \
        'uniworld-osp2-14b' 'The paper\'s model: FlashI2V 14B led by Qwen2.5-VL-7B; needs a large GPU and its weights' \
        'wan2.1-i2v-14b-480p' 'Moves pictures by plain Wan2.1 14B at 480p, without latent shifting; needs a large GPU' \
        'wan2.1-i2v-14b-720p' 'Moves pictures by plain Wan2.1 14B at 720p, without latent shifting; needs a large GPU' \
        'wan2.1-t2v-1.3b' 'Text to video by plain Wan2.1 1.3B, with --text; needs a GPU and its weights' \
        'wan2.1-t2v-14b' 'Text to video by plain Wan2.1 14B, with --text; needs a large GPU and its weights'
end

function __osp_values_name
    printf '%s\t%s\n' \
        '3d-rendering' 'Polished computer-animated scene: smooth forms, soft studio light' \
        'chibi' 'Cute and small: big heads, big eyes, flat bright color' \
        'cyberpunk' 'Neon night: teal and magenta glow, wet reflections, dark haze' \
        'disney' 'Family feature animation: bright color, round shapes, warm glow' \
        'fairy-tale' 'Storybook illustration: pastel glow, sparkles, enchanted mood' \
        'ghibli' 'Hand-painted anime film: soft light, lush greens, gentle skies' \
        'gotham-noir' 'Film noir: black shadows, rain, cold hard light' \
        'ink' 'Eastern ink wash: black strokes, grey mist, rice paper' \
        'lego' 'Everything built of toy bricks: studs, seams, glossy plastic' \
        'oil' 'Classic canvas: thick brush strokes, rich color, warm light' \
        'pixel-art' 'Retro game: square pixels, few colors, dithered shades' \
        'vaporwave' 'Eighties dream: pink and cyan sunset, scan lines, soft glow' \
        'watercolor' 'Wet washes on paper: bleeding pigment, grain, white edges'
end

function __osp_values_offload
    printf '%s\t%s\n' \
        'auto' '' \
        'none' '' \
        'model' '' \
        'group' '' \
        'sequential' '' \
        'disk' ''
end

function __osp_values_optimizer
    printf '%s\t%s\n' \
        'adamw' '' \
        'adamw8bit' '' \
        'muon' ''
end

function __osp_values_preview
    printf '%s\t%s\n' \
        'none' '' \
        'latent' '' \
        'contact' ''
end

function __osp_values_quant
    printf '%s\t%s\n' \
        'auto' '' \
        'none' '' \
        'fp8' '' \
        'int8' '' \
        'nf4' '' \
        'gguf' ''
end

function __osp_values_sampler
    printf '%s\t%s\n' \
        'euler' '' \
        'unipc' ''
end

function __osp_values_save_format
    printf '%s\t%s\n' \
        'native' '' \
        'kohya' '' \
        'peft' ''
end

function __osp_values_shell
    printf '%s\t%s\n' \
        'bash' '' \
        'zsh' '' \
        'fish' '' \
        'powershell' ''
end

function __osp_values_sink
    printf '%s\t%s\n' \
        'file' '' \
        'stdout' '' \
        'stdout:y4m' '' \
        'mpv' '' \
        'http' ''
end

function __osp_values_style
    printf '%s\t%s\n' \
        '3d-rendering' 'Polished computer-animated scene: smooth forms, soft studio light' \
        'chibi' 'Cute and small: big heads, big eyes, flat bright color' \
        'cyberpunk' 'Neon night: teal and magenta glow, wet reflections, dark haze' \
        'disney' 'Family feature animation: bright color, round shapes, warm glow' \
        'fairy-tale' 'Storybook illustration: pastel glow, sparkles, enchanted mood' \
        'ghibli' 'Hand-painted anime film: soft light, lush greens, gentle skies' \
        'gotham-noir' 'Film noir: black shadows, rain, cold hard light' \
        'ink' 'Eastern ink wash: black strokes, grey mist, rice paper' \
        'lego' 'Everything built of toy bricks: studs, seams, glossy plastic' \
        'oil' 'Classic canvas: thick brush strokes, rich color, warm light' \
        'pixel-art' 'Retro game: square pixels, few colors, dithered shades' \
        'vaporwave' 'Eighties dream: pink and cyan sunset, scan lines, soft glow' \
        'watercolor' 'Wet washes on paper: bleeding pigment, grain, white edges' \
        'none' 'No style' \
        'all' 'A sheet with one of each'
end

function __osp_values_stylizer
    printf '%s\t%s\n' \
        'procedural' '' \
        'qwen-image-edit' '' \
        'flux-kontext' '' \
        'flux2' '' \
        'flux2-klein' '' \
        'longcat-image-edit' ''
end

function __osp_values_subject
    printf '%s\t%s\n' \
        'mini' 'The built-in model, on photos that its training never saw' \
        'cache' 'Step caches: what each threshold saves and costs on a model'
end

function __osp_values_targets
    printf '%s\t%s\n' \
        'qkv-ffn' '' \
        'attn' '' \
        'all' '' \
        'paint' ''
end

function __osp_values_timesteps
    printf '%s\t%s\n' \
        'uniform' '' \
        'logit-normal' '' \
        'logit-normal-shift' ''
end

complete -c osp -f
complete -c osp -n '__osp_in osp' -l 'version' -d 'Show the version and exit'
complete -c osp -n '__osp_in osp' -s 'V' -d 'Show the version and exit'
complete -c osp -n '__osp_in osp' -l 'help' -d 'Show this message and exit'
complete -c osp -n '__osp_in osp' -s 'h' -d 'Show this message and exit'
complete -c osp -n '__osp_at osp 0' -a 'generate' -d 'Turn a picture into a video'
complete -c osp -n '__osp_in generate' -l 'style' -r -f -a '(__osp_values_style)' -d 'One of `osp styles`; ghibli:0.5 is half of it, ink+oil a mixture, oil..ink leads from one to the other [none]'
complete -c osp -n '__osp_in generate' -s 's' -r -f -a '(__osp_values_style)' -d 'One of `osp styles`; ghibli:0.5 is half of it, ink+oil a mixture, oil..ink leads from one to the other [none]'
complete -c osp -n '__osp_in generate' -l 'output' -r -F -d '.mp4, .gif, .webp, a folder/%04d.png, a folder/, or - for stdout [{name}-{style}-{seed}.mp4]'
complete -c osp -n '__osp_in generate' -s 'o' -r -F -d '.mp4, .gif, .webp, a folder/%04d.png, a folder/, or - for stdout [{name}-{style}-{seed}.mp4]'
complete -c osp -n '__osp_in generate' -l 'overwrite' -d 'Replace an existing video'
complete -c osp -n '__osp_in generate' -s 'y' -d 'Replace an existing video'
complete -c osp -n '__osp_in generate' -l 'seed' -r -f -d 'Equal seeds, equal videos; 1-4 or 3,7 make one video each [random]'
complete -c osp -n '__osp_in generate' -l 'count' -r -f -d 'So many videos, with seeds one after the other [1]'
complete -c osp -n '__osp_in generate' -s 'c' -r -f -d 'So many videos, with seeds one after the other [1]'
complete -c osp -n '__osp_in generate' -l 'negative-prompt' -r -f -d 'What to steer away from'
complete -c osp -n '__osp_in generate' -s 'n' -r -f -d 'What to steer away from'
complete -c osp -n '__osp_in generate' -l 'text' -r -f -d 'Text to video, without a picture'
complete -c osp -n '__osp_in generate' -l 'size' -r -f -d 'Pixels [the picture\'s nearest]'
complete -c osp -n '__osp_in generate' -l 'frames' -r -f -d '4k+1, others are rounded up [49]'
complete -c osp -n '__osp_in generate' -s 'f' -r -f -d '4k+1, others are rounded up [49]'
complete -c osp -n '__osp_in generate' -l 'seconds' -r -f -d 'The same as a length'
complete -c osp -n '__osp_in generate' -s 't' -r -f -d 'The same as a length'
complete -c osp -n '__osp_in generate' -l 'fps' -r -f -d 'Frames per second [16]'
complete -c osp -n '__osp_in generate' -l 'steps' -r -f -d 'Sampler steps [the model\'s]'
complete -c osp -n '__osp_in generate' -l 'cfg' -r -f -d 'How strongly the prompt leads; 1 is off and twice as fast [the model\'s]'
complete -c osp -n '__osp_in generate' -s 'g' -r -f -d 'How strongly the prompt leads; 1 is off and twice as fast [the model\'s]'
complete -c osp -n '__osp_in generate' -l 'cutoff' -r -f -d '0 to 1: how little of the picture\'s detail leads, a ramp, or a sheet of P,P,P [0.1]'
complete -c osp -n '__osp_in generate' -l 'shift' -r -f -d 'More means more time on the layout, less on detail [the model\'s]'
complete -c osp -n '__osp_in generate' -l 'sampler' -r -f -a '(__osp_values_sampler)' -d 'euler or unipc [the model\'s]'
complete -c osp -n '__osp_in generate' -l 'lora' -r -f -a '(__osp_files \'\\\\.(?:safetensors)\')' -d 'A LoRA, as a file or by its name, and how strongly it counts [1]; any number of them'
complete -c osp -n '__osp_in generate' -s 'l' -r -f -a '(__osp_files \'\\\\.(?:safetensors)\')' -d 'A LoRA, as a file or by its name, and how strongly it counts [1]; any number of them'
complete -c osp -n '__osp_in generate' -l 'cache' -r -f -a '(__osp_values_cache)' -d 'none, teacache, fbcache or magcache: skip steps that change little [the model\'s]'
complete -c osp -n '__osp_in generate' -l 'cache-start' -r -f -d 'Steps at the start that teacache and magcache always compute [the model\'s]'
complete -c osp -n '__osp_in generate' -l 'preview' -r -f -a '(__osp_values_preview)' -d 'latent: a picture of the video while it is made; contact: only a sheet of all seeds after a few steps [none]'
complete -c osp -n '__osp_in generate' -l 'pick' -r -f -d 'Finish this seed of a contact sheet'
complete -c osp -n '__osp_in generate' -l 'from' -r -f -a '(__osp_files \'\\\\.(?:mp4|json|safetensors)\')' -d 'Make it again from a video or its .json, or finish a .latents file; other flags win'
complete -c osp -n '__osp_in generate' -l 'from-file' -r -f -a '(__osp_files \'\\\\.(?:txt|jsonl|csv)\')' -d 'One video per line of a .txt, .jsonl or .csv file'
complete -c osp -n '__osp_in generate' -s 'F' -r -f -a '(__osp_files \'\\\\.(?:txt|jsonl|csv)\')' -d 'One video per line of a .txt, .jsonl or .csv file'
complete -c osp -n '__osp_in generate' -l 'model' -r -f -a '(__osp_values_model)' -d 'One of `osp models` [osp-mini]'
complete -c osp -n '__osp_in generate' -s 'm' -r -f -a '(__osp_values_model)' -d 'One of `osp models` [osp-mini]'
complete -c osp -n '__osp_in generate' -l 'device' -r -f -a '(__osp_values_device)' -d 'auto, cuda, mps or cpu [auto]'
complete -c osp -n '__osp_in generate' -l 'dtype' -r -f -a '(__osp_values_dtype)' -d 'bfloat16, float16 or float32 [the model\'s]'
complete -c osp -n '__osp_in generate' -l 'offload' -r -f -a '(__osp_values_offload)' -d 'Where idle weights wait: none, model, group, sequential or disk [what fits]'
complete -c osp -n '__osp_in generate' -l 'quant' -r -f -a '(__osp_values_quant)' -d 'Smaller weights: none, fp8, int8, nf4 or gguf [none, or fp8 where it must be]'
complete -c osp -n '__osp_in generate' -l 'attention' -r -f -a '(__osp_values_attention)' -d 'Kernels: auto, sdpa, flash or sage [auto]'
complete -c osp -n '__osp_in generate' -l 'vae-tiling' -d 'Decode in tiles: less memory, not quite the same picture [where it must be]'
complete -c osp -n '__osp_in generate' -l 'no-vae-tiling' -d 'Decode in tiles: less memory, not quite the same picture [where it must be]'
complete -c osp -n '__osp_in generate' -l 'compile' -d 'Compile the blocks: slow to start, quicker steps [no]'
complete -c osp -n '__osp_in generate' -l 'no-compile' -d 'Compile the blocks: slow to start, quicker steps [no]'
complete -c osp -n '__osp_in generate' -l 'gpus' -r -f -d 'Sample on N graphics cards together [1]'
complete -c osp -n '__osp_in generate' -l 'max-vram' -r -f -d 'Use no more of the graphics card\'s memory, as in 12GB'
complete -c osp -n '__osp_in generate' -l 'max-ram' -r -f -d 'Plan with no more of the computer\'s memory'
complete -c osp -n '__osp_in generate' -l 'offline' -d 'Never touch the network'
complete -c osp -n '__osp_in generate' -l 'metadata' -d 'Keep the recipe in the video and beside it, or nowhere [kept]'
complete -c osp -n '__osp_in generate' -l 'no-metadata' -d 'Keep the recipe in the video and beside it, or nowhere [kept]'
complete -c osp -n '__osp_in generate' -l 'config' -r -f -a '(__osp_files \'\\\\.(?:toml)\')' -d 'Settings in TOML [osp.toml]'
complete -c osp -n '__osp_in generate' -l 'print-config' -d 'Show every setting and where it comes from, and exit'
complete -c osp -n '__osp_in generate' -l 'dry-run' -d 'Show the plan, with bytes and time, and exit'
complete -c osp -n '__osp_in generate' -l 'json' -d 'One JSON object per line on stdout'
complete -c osp -n '__osp_in generate' -l 'quiet' -d 'Say nothing but errors'
complete -c osp -n '__osp_in generate' -s 'q' -d 'Say nothing but errors'
complete -c osp -n '__osp_in generate' -l 'verbose' -d 'Say where each setting comes from'
complete -c osp -n '__osp_in generate' -s 'v' -d 'Say where each setting comes from'
complete -c osp -n '__osp_in generate' -l 'debug' -d 'Show a traceback with an error'
complete -c osp -n '__osp_in generate' -l 'help' -d 'Show this message and exit'
complete -c osp -n '__osp_in generate' -s 'h' -d 'Show this message and exit'
complete -c osp -n '__osp_at generate 0' -f -a '(__osp_files \'\\\\.(?:png|jpg|jpeg|webp|gif|bmp|tif|tiff|avif|jp2|tga|ppm)\')'
complete -c osp -n '__osp_at osp 0' -a 'stylize' -d 'Turn pictures and videos into clips in a style'
complete -c osp -n '__osp_in stylize' -l 'style' -r -f -a '(__osp_values_style)' -d 'One of `osp styles`, ghibli:0.5, a mixture ink+oil, a change ghibli..ink, a file of your own, or a sheet of ink,oil or all'
complete -c osp -n '__osp_in stylize' -s 's' -r -f -a '(__osp_values_style)' -d 'One of `osp styles`, ghibli:0.5, a mixture ink+oil, a change ghibli..ink, a file of your own, or a sheet of ink,oil or all'
complete -c osp -n '__osp_in stylize' -l 'output' -r -F -d '.mp4, .gif, .webp, a folder/%04d.png, a folder/, or - for stdout; a sheet may also be .png or .jpg [{name}-{style}-{seed}.mp4]'
complete -c osp -n '__osp_in stylize' -s 'o' -r -F -d '.mp4, .gif, .webp, a folder/%04d.png, a folder/, or - for stdout; a sheet may also be .png or .jpg [{name}-{style}-{seed}.mp4]'
complete -c osp -n '__osp_in stylize' -l 'overwrite' -d 'Replace an existing video'
complete -c osp -n '__osp_in stylize' -s 'y' -d 'Replace an existing video'
complete -c osp -n '__osp_in stylize' -l 'seed' -r -f -d 'Equal seeds, equal videos; 1-4 or 3,7 make one video each [random]'
complete -c osp -n '__osp_in stylize' -l 'count' -r -f -d 'So many videos, with seeds one after the other [1]'
complete -c osp -n '__osp_in stylize' -s 'c' -r -f -d 'So many videos, with seeds one after the other [1]'
complete -c osp -n '__osp_in stylize' -l 'strength' -r -f -d '0 to 1: how far a video is painted anew [0.6; osp-mini 1]'
complete -c osp -n '__osp_in stylize' -l 'negative-prompt' -r -f -d 'What to steer away from'
complete -c osp -n '__osp_in stylize' -s 'n' -r -f -d 'What to steer away from'
complete -c osp -n '__osp_in stylize' -l 'size' -r -f -d 'Pixels [the picture\'s nearest]'
complete -c osp -n '__osp_in stylize' -l 'frames' -r -f -d '4k+1, others are rounded up [49]'
complete -c osp -n '__osp_in stylize' -s 'f' -r -f -d '4k+1, others are rounded up [49]'
complete -c osp -n '__osp_in stylize' -l 'seconds' -r -f -d 'The same as a length'
complete -c osp -n '__osp_in stylize' -s 't' -r -f -d 'The same as a length'
complete -c osp -n '__osp_in stylize' -l 'fps' -r -f -d 'Frames per second [16]'
complete -c osp -n '__osp_in stylize' -l 'steps' -r -f -d 'Sampler steps [the model\'s]'
complete -c osp -n '__osp_in stylize' -l 'cfg' -r -f -d 'How strongly the prompt leads; 1 is off and twice as fast [the model\'s]'
complete -c osp -n '__osp_in stylize' -s 'g' -r -f -d 'How strongly the prompt leads; 1 is off and twice as fast [the model\'s]'
complete -c osp -n '__osp_in stylize' -l 'cutoff' -r -f -d '0 to 1: how little of the picture\'s detail leads, a ramp, or a sheet of P,P,P [0.1]'
complete -c osp -n '__osp_in stylize' -l 'shift' -r -f -d 'More means more time on the layout, less on detail [the model\'s]'
complete -c osp -n '__osp_in stylize' -l 'sampler' -r -f -a '(__osp_values_sampler)' -d 'euler or unipc [the model\'s]'
complete -c osp -n '__osp_in stylize' -l 'lora' -r -f -a '(__osp_files \'\\\\.(?:safetensors)\')' -d 'A LoRA, as a file or by its name, and how strongly it counts [1]; any number of them'
complete -c osp -n '__osp_in stylize' -s 'l' -r -f -a '(__osp_files \'\\\\.(?:safetensors)\')' -d 'A LoRA, as a file or by its name, and how strongly it counts [1]; any number of them'
complete -c osp -n '__osp_in stylize' -l 'cache' -r -f -a '(__osp_values_cache)' -d 'none, teacache, fbcache or magcache: skip steps that change little [the model\'s]'
complete -c osp -n '__osp_in stylize' -l 'cache-start' -r -f -d 'Steps at the start that teacache and magcache always compute [the model\'s]'
complete -c osp -n '__osp_in stylize' -l 'preview' -r -f -a '(__osp_values_preview)' -d 'latent: a picture of the video while it is made; contact: only a sheet of all seeds after a few steps [none]'
complete -c osp -n '__osp_in stylize' -l 'pick' -r -f -d 'Finish this seed of a contact sheet'
complete -c osp -n '__osp_in stylize' -l 'from' -r -f -a '(__osp_files \'\\\\.(?:mp4|json|safetensors)\')' -d 'Make it again from a video or its .json, or finish a .latents file; other flags win'
complete -c osp -n '__osp_in stylize' -l 'from-file' -r -f -a '(__osp_files \'\\\\.(?:txt|jsonl|csv)\')' -d 'One video per line of a .txt, .jsonl or .csv file'
complete -c osp -n '__osp_in stylize' -s 'F' -r -f -a '(__osp_files \'\\\\.(?:txt|jsonl|csv)\')' -d 'One video per line of a .txt, .jsonl or .csv file'
complete -c osp -n '__osp_in stylize' -l 'model' -r -f -a '(__osp_values_model)' -d 'One of `osp models` [osp-mini]'
complete -c osp -n '__osp_in stylize' -s 'm' -r -f -a '(__osp_values_model)' -d 'One of `osp models` [osp-mini]'
complete -c osp -n '__osp_in stylize' -l 'device' -r -f -a '(__osp_values_device)' -d 'auto, cuda, mps or cpu [auto]'
complete -c osp -n '__osp_in stylize' -l 'dtype' -r -f -a '(__osp_values_dtype)' -d 'bfloat16, float16 or float32 [the model\'s]'
complete -c osp -n '__osp_in stylize' -l 'offload' -r -f -a '(__osp_values_offload)' -d 'Where idle weights wait: none, model, group, sequential or disk [what fits]'
complete -c osp -n '__osp_in stylize' -l 'quant' -r -f -a '(__osp_values_quant)' -d 'Smaller weights: none, fp8, int8, nf4 or gguf [none, or fp8 where it must be]'
complete -c osp -n '__osp_in stylize' -l 'attention' -r -f -a '(__osp_values_attention)' -d 'Kernels: auto, sdpa, flash or sage [auto]'
complete -c osp -n '__osp_in stylize' -l 'vae-tiling' -d 'Decode in tiles: less memory, not quite the same picture [where it must be]'
complete -c osp -n '__osp_in stylize' -l 'no-vae-tiling' -d 'Decode in tiles: less memory, not quite the same picture [where it must be]'
complete -c osp -n '__osp_in stylize' -l 'compile' -d 'Compile the blocks: slow to start, quicker steps [no]'
complete -c osp -n '__osp_in stylize' -l 'no-compile' -d 'Compile the blocks: slow to start, quicker steps [no]'
complete -c osp -n '__osp_in stylize' -l 'gpus' -r -f -d 'Sample on N graphics cards together [1]'
complete -c osp -n '__osp_in stylize' -l 'max-vram' -r -f -d 'Use no more of the graphics card\'s memory, as in 12GB'
complete -c osp -n '__osp_in stylize' -l 'max-ram' -r -f -d 'Plan with no more of the computer\'s memory'
complete -c osp -n '__osp_in stylize' -l 'offline' -d 'Never touch the network'
complete -c osp -n '__osp_in stylize' -l 'metadata' -d 'Keep the recipe in the video and beside it, or nowhere [kept]'
complete -c osp -n '__osp_in stylize' -l 'no-metadata' -d 'Keep the recipe in the video and beside it, or nowhere [kept]'
complete -c osp -n '__osp_in stylize' -l 'config' -r -f -a '(__osp_files \'\\\\.(?:toml)\')' -d 'Settings in TOML [osp.toml]'
complete -c osp -n '__osp_in stylize' -l 'print-config' -d 'Show every setting and where it comes from, and exit'
complete -c osp -n '__osp_in stylize' -l 'dry-run' -d 'Show the plan, with bytes and time, and exit'
complete -c osp -n '__osp_in stylize' -l 'json' -d 'One JSON object per line on stdout'
complete -c osp -n '__osp_in stylize' -l 'quiet' -d 'Say nothing but errors'
complete -c osp -n '__osp_in stylize' -s 'q' -d 'Say nothing but errors'
complete -c osp -n '__osp_in stylize' -l 'verbose' -d 'Say where each setting comes from'
complete -c osp -n '__osp_in stylize' -s 'v' -d 'Say where each setting comes from'
complete -c osp -n '__osp_in stylize' -l 'debug' -d 'Show a traceback with an error'
complete -c osp -n '__osp_in stylize' -l 'help' -d 'Show this message and exit'
complete -c osp -n '__osp_in stylize' -s 'h' -d 'Show this message and exit'
complete -c osp -n '__osp_at stylize 0' -f -a '(__osp_files \'\\\\.(?:png|jpg|jpeg|webp|gif|bmp|tif|tiff|avif|jp2|tga|ppm|mp4|mov|mkv|webm|avi|m4v|mpg|ts)\')'
complete -c osp -n '__osp_at osp 0' -a 'extend' -d 'Continue a video, a picture or the last output, also live and without end'
complete -c osp -n '__osp_in extend' -l 'realtime' -d 'A live stream without end: few steps, no guidance, type to steer it'
complete -c osp -n '__osp_in extend' -l 'style' -r -f -a '(__osp_values_style)' -d 'One of `osp styles`, ghibli:0.5 for half of it, ink+oil for a mixture; a screenplay changes it [none]'
complete -c osp -n '__osp_in extend' -s 's' -r -f -a '(__osp_values_style)' -d 'One of `osp styles`, ghibli:0.5 for half of it, ink+oil for a mixture; a screenplay changes it [none]'
complete -c osp -n '__osp_in extend' -l 'text' -r -f -d 'Text to video, without a picture'
complete -c osp -n '__osp_in extend' -l 'output' -r -F -d '.mp4, .mkv, a folder/, or - for stdout [{name}-{style}-{seed}.mp4]'
complete -c osp -n '__osp_in extend' -s 'o' -r -F -d '.mp4, .mkv, a folder/, or - for stdout [{name}-{style}-{seed}.mp4]'
complete -c osp -n '__osp_in extend' -l 'sink' -r -f -a '(__osp_values_sink)' -d 'file, stdout or stdout:y4m, mpv, http or http:PORT (a page on this machine), udp://, srt://, rtmp://, NAME.m3u8; repeat for several [file]'
complete -c osp -n '__osp_in extend' -l 'overwrite' -d 'Replace an existing video'
complete -c osp -n '__osp_in extend' -s 'y' -d 'Replace an existing video'
complete -c osp -n '__osp_in extend' -l 'seconds' -r -f -d 'Seconds to add; with --resume, of the whole stream [5; with --realtime no end]'
complete -c osp -n '__osp_in extend' -s 't' -r -f -d 'Seconds to add; with --resume, of the whole stream [5; with --realtime no end]'
complete -c osp -n '__osp_in extend' -l 'frames' -r -f -d 'The same in frames, any number'
complete -c osp -n '__osp_in extend' -s 'f' -r -f -d 'The same in frames, any number'
complete -c osp -n '__osp_in extend' -l 'fps' -r -f -d 'Frames per second [16]'
complete -c osp -n '__osp_in extend' -l 'from-file' -r -f -a '(__osp_files \'\\\\.(?:txt|jsonl|csv)\')' -d 'A screenplay: what happens when, one \'12s: prompt\' a line, or - for stdin'
complete -c osp -n '__osp_in extend' -s 'F' -r -f -a '(__osp_files \'\\\\.(?:txt|jsonl|csv)\')' -d 'A screenplay: what happens when, one \'12s: prompt\' a line, or - for stdin'
complete -c osp -n '__osp_in extend' -l 'listen' -d 'Lines typed or piped in change a live stream [yes]'
complete -c osp -n '__osp_in extend' -l 'no-listen' -d 'Lines typed or piped in change a live stream [yes]'
complete -c osp -n '__osp_in extend' -l 'from' -r -f -a '(__osp_files \'\\\\.(?:mp4|json|safetensors)\')' -d 'The same as INPUT: a clip or its .json'
complete -c osp -n '__osp_in extend' -l 'resume' -r -f -a '(__osp_files \'\\\\.(?:safetensors|mp4|mkv)\')' -d 'Take a stream up where it ended, of its .state.safetensors or its video'
complete -c osp -n '__osp_in extend' -l 'seed' -r -f -d 'Equal seeds, equal videos [random]'
complete -c osp -n '__osp_in extend' -l 'negative-prompt' -r -f -d 'What to steer away from'
complete -c osp -n '__osp_in extend' -s 'n' -r -f -d 'What to steer away from'
complete -c osp -n '__osp_in extend' -l 'size' -r -f -d 'Pixels [the picture\'s nearest]'
complete -c osp -n '__osp_in extend' -l 'steps' -r -f -d 'Sampler steps [the model\'s]'
complete -c osp -n '__osp_in extend' -l 'cfg' -r -f -d 'How strongly the prompt leads; 1 is off and twice as fast [the model\'s]'
complete -c osp -n '__osp_in extend' -s 'g' -r -f -d 'How strongly the prompt leads; 1 is off and twice as fast [the model\'s]'
complete -c osp -n '__osp_in extend' -l 'cutoff' -r -f -d '0 to 1: how little of the picture\'s detail leads [0.1]'
complete -c osp -n '__osp_in extend' -l 'shift' -r -f -d 'More means more time on the layout, less on detail [the model\'s]'
complete -c osp -n '__osp_in extend' -l 'sampler' -r -f -a '(__osp_values_sampler)' -d 'dmd, euler or unipc [the model\'s]'
complete -c osp -n '__osp_in extend' -l 'context' -r -f -d 'Latent frames that each chunk goes on from [the model\'s]'
complete -c osp -n '__osp_in extend' -l 'latent-frames' -r -f -d 'Latent frames of a chunk [9]'
complete -c osp -n '__osp_in extend' -l 'stages' -r -f -d 'Resolutions from low to full, each twice the last [the model\'s]'
complete -c osp -n '__osp_in extend' -l 'anchor-color' -r -f -d 'Hold the colours of the beginning: 0 not at all, 1 wholly [0]'
complete -c osp -n '__osp_in extend' -l 'lora' -r -f -a '(__osp_files \'\\\\.(?:safetensors)\')' -d 'A LoRA, as a file or by its name, and how strongly it counts [1]; any number of them'
complete -c osp -n '__osp_in extend' -s 'l' -r -f -a '(__osp_files \'\\\\.(?:safetensors)\')' -d 'A LoRA, as a file or by its name, and how strongly it counts [1]; any number of them'
complete -c osp -n '__osp_in extend' -l 'cache' -r -f -a '(__osp_values_cache)' -d 'none, teacache, fbcache or magcache: skip steps that change little [the model\'s]'
complete -c osp -n '__osp_in extend' -l 'cache-start' -r -f -d 'Steps at the start that teacache and magcache always compute [the model\'s]'
complete -c osp -n '__osp_in extend' -l 'model' -r -f -a '(__osp_values_model)' -d 'One of `osp models` [osp-mini]'
complete -c osp -n '__osp_in extend' -s 'm' -r -f -a '(__osp_values_model)' -d 'One of `osp models` [osp-mini]'
complete -c osp -n '__osp_in extend' -l 'device' -r -f -a '(__osp_values_device)' -d 'auto, cuda, mps or cpu [auto]'
complete -c osp -n '__osp_in extend' -l 'dtype' -r -f -a '(__osp_values_dtype)' -d 'bfloat16, float16 or float32 [the model\'s]'
complete -c osp -n '__osp_in extend' -l 'offload' -r -f -a '(__osp_values_offload)' -d 'Where idle weights wait: none, model, group, sequential or disk [what fits]'
complete -c osp -n '__osp_in extend' -l 'quant' -r -f -a '(__osp_values_quant)' -d 'Smaller weights: none, fp8, int8, nf4 or gguf [none, or fp8 where it must be]'
complete -c osp -n '__osp_in extend' -l 'attention' -r -f -a '(__osp_values_attention)' -d 'Kernels: auto, sdpa, flash or sage [auto]'
complete -c osp -n '__osp_in extend' -l 'compile' -d 'Compile the blocks: slow to start, quicker steps [no]'
complete -c osp -n '__osp_in extend' -l 'no-compile' -d 'Compile the blocks: slow to start, quicker steps [no]'
complete -c osp -n '__osp_in extend' -l 'max-vram' -r -f -d 'Use no more of the graphics card\'s memory, as in 12GB'
complete -c osp -n '__osp_in extend' -l 'max-ram' -r -f -d 'Plan with no more of the computer\'s memory'
complete -c osp -n '__osp_in extend' -l 'offline' -d 'Never touch the network'
complete -c osp -n '__osp_in extend' -l 'metadata' -d 'Keep the recipe in the video and beside it, or nowhere [kept]'
complete -c osp -n '__osp_in extend' -l 'no-metadata' -d 'Keep the recipe in the video and beside it, or nowhere [kept]'
complete -c osp -n '__osp_in extend' -l 'config' -r -f -a '(__osp_files \'\\\\.(?:toml)\')' -d 'Settings in TOML [osp.toml]'
complete -c osp -n '__osp_in extend' -l 'print-config' -d 'Show every setting and where it comes from, and exit'
complete -c osp -n '__osp_in extend' -l 'dry-run' -d 'Show the plan, with bytes and time, and exit'
complete -c osp -n '__osp_in extend' -l 'json' -d 'One JSON object per line on stdout'
complete -c osp -n '__osp_in extend' -l 'quiet' -d 'Say nothing but errors'
complete -c osp -n '__osp_in extend' -s 'q' -d 'Say nothing but errors'
complete -c osp -n '__osp_in extend' -l 'verbose' -d 'Say where each setting comes from'
complete -c osp -n '__osp_in extend' -s 'v' -d 'Say where each setting comes from'
complete -c osp -n '__osp_in extend' -l 'debug' -d 'Show a traceback with an error'
complete -c osp -n '__osp_in extend' -l 'help' -d 'Show this message and exit'
complete -c osp -n '__osp_in extend' -s 'h' -d 'Show this message and exit'
complete -c osp -n '__osp_at extend 0' -f -a '(__osp_files \'\\\\.(?:png|jpg|jpeg|webp|gif|bmp|tif|tiff|avif|jp2|tga|ppm|mp4|mov|mkv|webm|avi|m4v|mpg|ts)\')'
complete -c osp -n '__osp_at osp 0' -a 'train-lora' -d 'Train a style or a subject of your own from a folder of clips'
complete -c osp -n '__osp_in train-lora' -l 'out' -r -F -d 'What --style and --lora will call it; the run\'s folder, perhaps with a path before'
complete -c osp -n '__osp_in train-lora' -s 'o' -r -F -d 'What --style and --lora will call it; the run\'s folder, perhaps with a path before'
complete -c osp -n '__osp_in train-lora' -l 'model' -r -f -a '(__osp_values_model)' -d 'Base to train on, of `osp models` [osp-mini]'
complete -c osp -n '__osp_in train-lora' -s 'm' -r -f -a '(__osp_values_model)' -d 'Base to train on, of `osp models` [osp-mini]'
complete -c osp -n '__osp_in train-lora' -l 'mode' -r -f -a '(__osp_values_mode)' -d 'flash, t2v or inpaint [the base\'s]'
complete -c osp -n '__osp_in train-lora' -l 'condition' -r -f -a '(__osp_values_condition)' -d 'Picture a clip follows from: source (NAME.source.png beside it), plain (first frame robbed of its style), first (frame as it is), auto [auto; the base\'s recipe]'
complete -c osp -n '__osp_in train-lora' -l 'full' -d 'Train all weights, as section 5.1 of the paper'
complete -c osp -n '__osp_in train-lora' -l 'no-full' -d 'Train all weights, as section 5.1 of the paper'
complete -c osp -n '__osp_in train-lora' -l 'train-adapter' -d 'Train the maps from prompt features too'
complete -c osp -n '__osp_in train-lora' -l 'no-train-adapter' -d 'Train the maps from prompt features too'
complete -c osp -n '__osp_in train-lora' -l 'trigger' -r -f -d 'Words that call it up, put before captions without them'
complete -c osp -n '__osp_in train-lora' -l 'rank' -r -f -d 'Of the LoRA [8; the base\'s recipe]'
complete -c osp -n '__osp_in train-lora' -l 'alpha' -r -f -d 'It counts alpha / rank [4; the base\'s recipe]'
complete -c osp -n '__osp_in train-lora' -l 'targets' -r -f -a '(__osp_values_targets)' -d 'qkv-ffn, attn, all, paint, or layers [qkv-ffn; the base\'s recipe]'
complete -c osp -n '__osp_in train-lora' -l 'size' -r -f -d 'Area that buckets have [512x512; the base\'s recipe]'
complete -c osp -n '__osp_in train-lora' -l 'frames' -r -f -d 'Frames of a sample, 4k+1 [49]'
complete -c osp -n '__osp_in train-lora' -s 'f' -r -f -d 'Frames of a sample, 4k+1 [49]'
complete -c osp -n '__osp_in train-lora' -l 'fps' -r -f -d 'Rate that clips are resampled to by time stamps [16]'
complete -c osp -n '__osp_in train-lora' -l 'stride' -r -f -d 'Every n-th frame of a file instead, whatever its rate'
complete -c osp -n '__osp_in train-lora' -l 'bucket' -d 'Clips keep their shapes, or all have --size [--bucket]'
complete -c osp -n '__osp_in train-lora' -l 'no-bucket' -d 'Clips keep their shapes, or all have --size [--bucket]'
complete -c osp -n '__osp_in train-lora' -l 'windows' -r -f -d 'Parts of a long clip that are used, at most [4]'
complete -c osp -n '__osp_in train-lora' -l 'latent-frames' -r -f -d 'Latent frames that a step looks at; 0 for all'
complete -c osp -n '__osp_in train-lora' -l 'epochs' -r -f -d 'Passes over the data [1]'
complete -c osp -n '__osp_in train-lora' -l 'max-steps' -r -f -d 'Steps in all, instead of epochs'
complete -c osp -n '__osp_in train-lora' -l 'batch-size' -r -f -d 'Samples that a device takes at once [1]'
complete -c osp -n '__osp_in train-lora' -l 'accumulate' -r -f -d 'Such passes in a step [1]'
complete -c osp -n '__osp_in train-lora' -l 'lr' -r -f -d 'Learning rate [1e-4; the base\'s recipe]'
complete -c osp -n '__osp_in train-lora' -l 'weight-decay' -r -f -d 'Of AdamW [0.03]'
complete -c osp -n '__osp_in train-lora' -l 'betas' -r -f -d 'Of AdamW [0.9,0.999]'
complete -c osp -n '__osp_in train-lora' -l 'eps' -r -f -d 'Of AdamW [1e-10]'
complete -c osp -n '__osp_in train-lora' -l 'max-grad-norm' -r -f -d 'At which gradients are clipped [0.05]'
complete -c osp -n '__osp_in train-lora' -l 'optimizer' -r -f -a '(__osp_values_optimizer)' -d 'adamw, adamw8bit or muon [adamw]'
complete -c osp -n '__osp_in train-lora' -l 'lr-schedule' -r -f -a '(__osp_values_lr_schedule)' -d 'constant, linear or cosine [constant]'
complete -c osp -n '__osp_in train-lora' -l 'warmup' -r -f -d 'Steps in which the rate rises [0]'
complete -c osp -n '__osp_in train-lora' -l 'ema' -r -f -d 'Decay of a moving average that is saved instead [0: none]'
complete -c osp -n '__osp_in train-lora' -l 'seed' -r -f -d 'Of every random choice [42]'
complete -c osp -n '__osp_in train-lora' -l 'caption-drop' -r -f -d 'Share of samples without their caption [0.1]'
complete -c osp -n '__osp_in train-lora' -l 'cutoff' -r -f -d 'Range of the Fourier cutoff [0.05:0.95]'
complete -c osp -n '__osp_in train-lora' -l 'timesteps' -r -f -a '(__osp_values_timesteps)' -d 'uniform, logit-normal or logit-normal-shift [uniform]'
complete -c osp -n '__osp_in train-lora' -l 'sigma-shift' -r -f -d 'Shift of noise levels [1; the base\'s recipe]'
complete -c osp -n '__osp_in train-lora' -l 'sigma-power' -r -f -d 'Weight of a noise level, its power [0]'
complete -c osp -n '__osp_in train-lora' -l 'device' -r -f -a '(__osp_values_device)' -d 'auto, cpu, cuda, cuda:N or mps [auto]'
complete -c osp -n '__osp_in train-lora' -l 'dtype' -r -f -a '(__osp_values_dtype)' -d 'Of the base\'s weights [the card\'s]'
complete -c osp -n '__osp_in train-lora' -l 'quant' -r -f -a '(__osp_values_frozen_quant)' -d 'none, or fp8 for the frozen base [none]'
complete -c osp -n '__osp_in train-lora' -l 'gpus' -r -f -d 'Processes that share a step, a GPU each [1]'
complete -c osp -n '__osp_in train-lora' -l 'context-parallel' -r -f -d 'Of them, how many share one sample [1]'
complete -c osp -n '__osp_in train-lora' -l 'max-vram' -r -f -d 'Memory of the device that may be used [all that is free]'
complete -c osp -n '__osp_in train-lora' -l 'max-ram' -r -f -d 'Memory of the host that may be used [all that is free]'
complete -c osp -n '__osp_in train-lora' -l 'grad-checkpoint' -d 'Compute activations twice, for less memory [on]'
complete -c osp -n '__osp_in train-lora' -l 'no-grad-checkpoint' -d 'Compute activations twice, for less memory [on]'
complete -c osp -n '__osp_in train-lora' -l 'swap-blocks' -r -f -d 'Frozen blocks that wait in RAM [auto]'
complete -c osp -n '__osp_in train-lora' -l 'offload-activations' -d 'What checkpoints keep waits in RAM'
complete -c osp -n '__osp_in train-lora' -l 'no-offload-activations' -d 'What checkpoints keep waits in RAM'
complete -c osp -n '__osp_in train-lora' -l 'save-every' -r -f -d 'Steps between checkpoints [250; the base\'s recipe]'
complete -c osp -n '__osp_in train-lora' -l 'keep' -r -f -d 'Checkpoints that are kept [3]'
complete -c osp -n '__osp_in train-lora' -l 'sample-every' -r -f -d 'Steps between samples; 0 for none [250; the base\'s recipe]'
complete -c osp -n '__osp_in train-lora' -l 'sample-prompt' -r -f -d 'Of a sample; may be repeated [three built-in ones]'
complete -c osp -n '__osp_in train-lora' -l 'sample-image' -r -f -a '(__osp_files \'\\\\.(?:png|jpg|jpeg|webp|gif|bmp|tif|tiff|avif|jp2|tga|ppm)\')' -d 'Picture of samples; may be repeated [a photo, and of the data]'
complete -c osp -n '__osp_in train-lora' -l 'save-format' -r -f -a '(__osp_values_save_format)' -d 'native, kohya or peft [native]'
complete -c osp -n '__osp_in train-lora' -l 'log' -r -f -a '(__osp_values_log)' -d 'tensorboard too; metrics.jsonl is always written'
complete -c osp -n '__osp_in train-lora' -l 'cache-dir' -r -F -d 'Where encoded clips are kept'
complete -c osp -n '__osp_in train-lora' -l 'title' -r -f -d 'Its name in `osp styles`'
complete -c osp -n '__osp_in train-lora' -l 'resume' -r -f -a '(__osp_values_going_on)' -d 'auto goes on where the run stopped, never begins anew; or a checkpoint\'s folder'
complete -c osp -n '__osp_in train-lora' -l 'allow-empty' -d 'Clips need no caption'
complete -c osp -n '__osp_in train-lora' -l 'allow-upscale' -d 'Clips may be too small'
complete -c osp -n '__osp_in train-lora' -l 'skip-invalid' -d 'Train without clips that fail'
complete -c osp -n '__osp_in train-lora' -l 'validate-only' -d 'Check the data and exit'
complete -c osp -n '__osp_in train-lora' -l 'cache-only' -d 'Encode all clips and exit'
complete -c osp -n '__osp_in train-lora' -l 'overwrite' -d 'Replace an adapter of that name; with --resume never, a run too'
complete -c osp -n '__osp_in train-lora' -s 'y' -d 'Replace an adapter of that name; with --resume never, a run too'
complete -c osp -n '__osp_in train-lora' -l 'offline' -d 'Never touch the network'
complete -c osp -n '__osp_in train-lora' -l 'config' -r -f -a '(__osp_files \'\\\\.(?:toml)\')' -d 'Settings in TOML [osp.toml]'
complete -c osp -n '__osp_in train-lora' -l 'print-config' -d 'Show every setting and where it comes from, and exit'
complete -c osp -n '__osp_in train-lora' -l 'dry-run' -d 'Show the plan, with bytes and time, and exit'
complete -c osp -n '__osp_in train-lora' -l 'json' -d 'One JSON object per line on stdout'
complete -c osp -n '__osp_in train-lora' -l 'quiet' -d 'Say nothing but errors'
complete -c osp -n '__osp_in train-lora' -s 'q' -d 'Say nothing but errors'
complete -c osp -n '__osp_in train-lora' -l 'verbose' -d 'Say where each setting comes from'
complete -c osp -n '__osp_in train-lora' -s 'v' -d 'Say where each setting comes from'
complete -c osp -n '__osp_in train-lora' -l 'debug' -d 'Show a traceback with an error'
complete -c osp -n '__osp_in train-lora' -l 'help' -d 'Show this message and exit'
complete -c osp -n '__osp_in train-lora' -s 'h' -d 'Show this message and exit'
complete -c osp -n '__osp_at train-lora 0' -f -a '(__osp_files \'\\\\.(?:jsonl|json|csv|toml|txt)\')'
complete -c osp -n '__osp_at osp 0' -a 'styles' -d 'List the styles'
complete -c osp -n '__osp_in styles' -l 'gallery' -r -f -a '(__osp_files \'\\\\.(?:html)\')' -d 'Write a page with a picture of each'
complete -c osp -n '__osp_in styles' -l 'image' -r -f -a '(__osp_files \'\\\\.(?:png|jpg|jpeg|webp|gif|bmp|tif|tiff|avif|jp2|tga|ppm)\')' -d 'Make the page\'s pictures of this photo'
complete -c osp -n '__osp_in styles' -l 'overwrite' -d 'Replace an existing page'
complete -c osp -n '__osp_in styles' -s 'y' -d 'Replace an existing page'
complete -c osp -n '__osp_in styles' -l 'json' -d 'One JSON object per line on stdout'
complete -c osp -n '__osp_in styles' -l 'quiet' -d 'Say nothing but errors'
complete -c osp -n '__osp_in styles' -s 'q' -d 'Say nothing but errors'
complete -c osp -n '__osp_in styles' -l 'debug' -d 'Show a traceback with an error'
complete -c osp -n '__osp_in styles' -l 'help' -d 'Show this message and exit'
complete -c osp -n '__osp_in styles' -s 'h' -d 'Show this message and exit'
complete -c osp -n '__osp_at styles 0' -f -a '(__osp_values_name)'
complete -c osp -n '__osp_at osp 0' -a 'download' -d 'Fetch the weights of models, or go on with it, and check them'
complete -c osp -n '__osp_in download' -l 'list' -d 'Show what there is: size, licence, what is installed, what fits this machine'
complete -c osp -n '__osp_in download' -l 'dry-run' -d 'Show the files, bytes and free space, and exit'
complete -c osp -n '__osp_in download' -l 'verify' -d 'Read what is here again and compare its hashes'
complete -c osp -n '__osp_in download' -l 'local' -r -F -d 'Install weights that are on this disk, in any layout'
complete -c osp -n '__osp_in download' -l 'revision' -r -f -d 'Branch, tag or commit of the model\'s own repository [the card\'s]'
complete -c osp -n '__osp_in download' -l 'include' -r -f -d 'Only files that match, into the cache; may be repeated [all]'
complete -c osp -n '__osp_in download' -l 'exclude' -r -f -d 'No files that match; may be repeated [none]'
complete -c osp -n '__osp_in download' -l 'mirror' -r -f -d 'Ask this server first, without your token; may be repeated [none]'
complete -c osp -n '__osp_in download' -l 'jobs' -r -f -d 'Files at a time [4]'
complete -c osp -n '__osp_in download' -l 'limit-rate' -r -f -d 'Bytes a second of all files together, as in 500K or 5M [unlimited]'
complete -c osp -n '__osp_in download' -l 'offline' -d 'Never touch the network'
complete -c osp -n '__osp_in download' -l 'overwrite' -d 'Install anew what is installed, also from elsewhere'
complete -c osp -n '__osp_in download' -s 'y' -d 'Install anew what is installed, also from elsewhere'
complete -c osp -n '__osp_in download' -l 'json' -d 'One JSON object per line on stdout'
complete -c osp -n '__osp_in download' -l 'quiet' -d 'Say nothing but errors'
complete -c osp -n '__osp_in download' -s 'q' -d 'Say nothing but errors'
complete -c osp -n '__osp_in download' -l 'debug' -d 'Show a traceback with an error'
complete -c osp -n '__osp_in download' -l 'help' -d 'Show this message and exit'
complete -c osp -n '__osp_in download' -s 'h' -d 'Show this message and exit'
complete -c osp -n '__osp_at download 0' -f -a '(__osp_values_models)'
complete -c osp -n '__osp_at osp 0' -a 'doctor' -d 'Look at this machine, and tell what would run on it'
complete -c osp -n '__osp_in doctor' -l 'json' -d 'One JSON object per line on stdout'
complete -c osp -n '__osp_in doctor' -l 'debug' -d 'Show a traceback with an error'
complete -c osp -n '__osp_in doctor' -l 'help' -d 'Show this message and exit'
complete -c osp -n '__osp_in doctor' -s 'h' -d 'Show this message and exit'
complete -c osp -n '__osp_at osp 0' -a 'bench' -d 'Measure a model against what is promised of it'
complete -c osp -n '__osp_in bench' -l 'quick' -d 'Fewer photos and shorter clips: minutes'
complete -c osp -n '__osp_in bench' -l 'photos' -r -F -d 'Pictures to measure on [seven photos]'
complete -c osp -n '__osp_in bench' -l 'out' -r -F -d 'Keep a report and sheets of clips there'
complete -c osp -n '__osp_in bench' -l 'weights' -r -F -d 'Other weights of the same layout'
complete -c osp -n '__osp_in bench' -l 'model' -r -f -a '(__osp_values_model)' -d 'One of `osp models` [osp-mini]'
complete -c osp -n '__osp_in bench' -s 'm' -r -f -a '(__osp_values_model)' -d 'One of `osp models` [osp-mini]'
complete -c osp -n '__osp_in bench' -l 'caches' -r -f -d 'What cache compares, as in fbcache:0.1,magcache'
complete -c osp -n '__osp_in bench' -l 'steps' -r -f -d 'Sampler steps [the model\'s]'
complete -c osp -n '__osp_in bench' -l 'style' -r -f -a '(__osp_values_style)' -d 'One of `osp styles`; ghibli:0.5 is half of it, ink+oil a mixture, oil..ink leads from one to the other [none]'
complete -c osp -n '__osp_in bench' -s 's' -r -f -a '(__osp_values_style)' -d 'One of `osp styles`; ghibli:0.5 is half of it, ink+oil a mixture, oil..ink leads from one to the other [none]'
complete -c osp -n '__osp_in bench' -l 'json' -d 'One JSON object per line on stdout'
complete -c osp -n '__osp_in bench' -l 'quiet' -d 'Say nothing but errors'
complete -c osp -n '__osp_in bench' -s 'q' -d 'Say nothing but errors'
complete -c osp -n '__osp_in bench' -l 'debug' -d 'Show a traceback with an error'
complete -c osp -n '__osp_in bench' -l 'help' -d 'Show this message and exit'
complete -c osp -n '__osp_in bench' -s 'h' -d 'Show this message and exit'
complete -c osp -n '__osp_at bench 0' -f -a '(__osp_values_subject)'
complete -c osp -n '__osp_at osp 0' -a 'completion' -d 'Print a script that lets a shell complete osp\'s command lines'
complete -c osp -n '__osp_in completion' -l 'debug' -d 'Show a traceback with an error'
complete -c osp -n '__osp_in completion' -l 'help' -d 'Show this message and exit'
complete -c osp -n '__osp_in completion' -s 'h' -d 'Show this message and exit'
complete -c osp -n '__osp_at completion 0' -f -a '(__osp_values_shell)'
complete -c osp -n '__osp_at osp 0' -a 'schema' -d 'Print the JSON Schema of what osp writes'
complete -c osp -n '__osp_in schema' -l 'debug' -d 'Show a traceback with an error'
complete -c osp -n '__osp_in schema' -l 'help' -d 'Show this message and exit'
complete -c osp -n '__osp_in schema' -s 'h' -d 'Show this message and exit'
complete -c osp -n '__osp_at schema 0' -f -a '(__osp_values_document)'
complete -c osp -n '__osp_at osp 0' -a 'models' -d 'List the models and where their weights are, or would go'
complete -c osp -n '__osp_in models' -l 'json' -d 'One JSON object per line on stdout'
complete -c osp -n '__osp_in models' -l 'debug' -d 'Show a traceback with an error'
complete -c osp -n '__osp_in models' -l 'help' -d 'Show this message and exit'
complete -c osp -n '__osp_in models' -s 'h' -d 'Show this message and exit'
complete -c osp -n '__osp_at models 0' -a 'inspect' -d 'Tell what is in a file of weights: a LoRA\'s layout, rank, strength and what it fits'
complete -c osp -n '__osp_in \'models inspect\'' -l 'model' -r -f -a '(__osp_values_model)' -d 'Hold it against one of `osp models`'
complete -c osp -n '__osp_in \'models inspect\'' -s 'm' -r -f -a '(__osp_values_model)' -d 'Hold it against one of `osp models`'
complete -c osp -n '__osp_in \'models inspect\'' -l 'json' -d 'One JSON object per line on stdout'
complete -c osp -n '__osp_in \'models inspect\'' -l 'debug' -d 'Show a traceback with an error'
complete -c osp -n '__osp_in \'models inspect\'' -l 'help' -d 'Show this message and exit'
complete -c osp -n '__osp_in \'models inspect\'' -s 'h' -d 'Show this message and exit'
complete -c osp -n '__osp_at \'models inspect\' 0' -f -a '(__osp_files \'\\\\.(?:safetensors)\')'
complete -c osp -n '__osp_at osp 0' -a 'dataset' -d 'Build a dataset for osp train-lora, or check one'
complete -c osp -n '__osp_in dataset' -l 'help' -d 'Show this message and exit'
complete -c osp -n '__osp_in dataset' -s 'h' -d 'Show this message and exit'
complete -c osp -n '__osp_at dataset 0' -a 'check' -d 'Check clips and captions: everything that is wrong with them, at once'
complete -c osp -n '__osp_in \'dataset check\'' -l 'model' -r -f -a '(__osp_values_model)' -d 'One of `osp models` [osp-mini]'
complete -c osp -n '__osp_in \'dataset check\'' -s 'm' -r -f -a '(__osp_values_model)' -d 'One of `osp models` [osp-mini]'
complete -c osp -n '__osp_in \'dataset check\'' -l 'mode' -r -f -a '(__osp_values_mode)' -d 'flash, t2v or inpaint [the model\'s]'
complete -c osp -n '__osp_in \'dataset check\'' -l 'condition' -r -f -a '(__osp_values_condition)' -d 'auto, first, source or plain [the model\'s]'
complete -c osp -n '__osp_in \'dataset check\'' -l 'size' -r -f -d 'Pixels [512x512; osp-mini\'s own]'
complete -c osp -n '__osp_in \'dataset check\'' -l 'frames' -r -f -d '4k+1, others are rounded up [49]'
complete -c osp -n '__osp_in \'dataset check\'' -s 'f' -r -f -d '4k+1, others are rounded up [49]'
complete -c osp -n '__osp_in \'dataset check\'' -l 'fps' -r -f -d 'Frames per second [16]'
complete -c osp -n '__osp_in \'dataset check\'' -l 'stride' -r -f -d 'Every n-th frame of a file instead, whatever its rate'
complete -c osp -n '__osp_in \'dataset check\'' -l 'windows' -r -f -d 'Parts of a long clip that are used, at most [4]'
complete -c osp -n '__osp_in \'dataset check\'' -l 'seed' -r -f -d 'Where the parts lie [42]'
complete -c osp -n '__osp_in \'dataset check\'' -l 'no-bucket' -d 'Cut all clips to one size and length'
complete -c osp -n '__osp_in \'dataset check\'' -l 'allow-empty' -d 'Clips may come without a caption'
complete -c osp -n '__osp_in \'dataset check\'' -l 'allow-upscale' -d 'Clips may be smaller than what is trained at'
complete -c osp -n '__osp_in \'dataset check\'' -l 'report' -r -f -a '(__osp_files \'\\\\.(?:json)\')' -d 'Write all findings to a .json file'
complete -c osp -n '__osp_in \'dataset check\'' -l 'json' -d 'One JSON object per line on stdout'
complete -c osp -n '__osp_in \'dataset check\'' -l 'quiet' -d 'Say nothing but errors'
complete -c osp -n '__osp_in \'dataset check\'' -s 'q' -d 'Say nothing but errors'
complete -c osp -n '__osp_in \'dataset check\'' -l 'debug' -d 'Show a traceback with an error'
complete -c osp -n '__osp_in \'dataset check\'' -l 'help' -d 'Show this message and exit'
complete -c osp -n '__osp_in \'dataset check\'' -s 'h' -d 'Show this message and exit'
complete -c osp -n '__osp_at \'dataset check\' 0' -f -a '(__osp_files \'\\\\.(?:jsonl|json|csv|toml|txt)\')'
complete -c osp -n '__osp_at dataset 0' -a 'build' -d 'Make styled clips of videos, pictures or drawn scenes (paper, section 6)'
complete -c osp -n '__osp_in \'dataset build\'' -l 'style' -r -f -a '(__osp_values_style)' -d 'Styles that every source is shown in, or all'
complete -c osp -n '__osp_in \'dataset build\'' -s 's' -r -f -a '(__osp_values_style)' -d 'Styles that every source is shown in, or all'
complete -c osp -n '__osp_in \'dataset build\'' -l 'output' -r -F -d 'The dataset'
complete -c osp -n '__osp_in \'dataset build\'' -s 'o' -r -F -d 'The dataset'
complete -c osp -n '__osp_in \'dataset build\'' -l 'frames' -r -f -d 'Of every clip, 4k+1 [81, or what the animator makes at most]'
complete -c osp -n '__osp_in \'dataset build\'' -s 'f' -r -f -d 'Of every clip, 4k+1 [81, or what the animator makes at most]'
complete -c osp -n '__osp_in \'dataset build\'' -l 'fps' -r -f -d 'Frames per second [16]'
complete -c osp -n '__osp_in \'dataset build\'' -l 'size' -r -f -d 'Pixels [the picture\'s nearest]'
complete -c osp -n '__osp_in \'dataset build\'' -l 'count' -r -f -d 'Take so many sources [all; 8 drawn scenes]'
complete -c osp -n '__osp_in \'dataset build\'' -s 'c' -r -f -d 'Take so many sources [all; 8 drawn scenes]'
complete -c osp -n '__osp_in \'dataset build\'' -l 'seed' -r -f -d 'Of everything'
complete -c osp -n '__osp_in \'dataset build\'' -l 'caption' -r -f -d 'Of every clip; {caption} is the text beside it, {style} the style\'s name'
complete -c osp -n '__osp_in \'dataset build\'' -l 'prompt' -r -f -d 'What happens in every clip [what the text beside it says]'
complete -c osp -n '__osp_in \'dataset build\'' -l 'stylizer' -r -f -a '(__osp_values_stylizer)' -d 'procedural, qwen-image-edit, flux-kontext, flux2, flux2-klein, longcat-image-edit, or a folder with one of them'
complete -c osp -n '__osp_in \'dataset build\'' -l 'animator' -r -f -a '(__osp_values_animator)' -d 'procedural, or one of `osp models`'
complete -c osp -n '__osp_in \'dataset build\'' -l 'judge' -r -F -d 'A CLIP model that must find the style in every picture and clip'
complete -c osp -n '__osp_in \'dataset build\'' -l 'min-seconds' -r -f -d 'Shortest video that is taken [5]'
complete -c osp -n '__osp_in \'dataset build\'' -l 'max-seconds' -r -f -d 'Longest one [20]'
complete -c osp -n '__osp_in \'dataset build\'' -l 'min-side' -r -f -d 'Shorter side of the smallest one [720, less for small clips]'
complete -c osp -n '__osp_in \'dataset build\'' -l 'allow-cuts' -d 'Take videos with cuts too'
complete -c osp -n '__osp_in \'dataset build\'' -l 'no-gates' -d 'Take everything, however it looks'
complete -c osp -n '__osp_in \'dataset build\'' -l 'device' -r -f -a '(__osp_values_device)' -d 'auto, cuda, mps or cpu [auto]'
complete -c osp -n '__osp_in \'dataset build\'' -l 'overwrite' -d 'Make anew what was begun in FOLDER with other settings'
complete -c osp -n '__osp_in \'dataset build\'' -s 'y' -d 'Make anew what was begun in FOLDER with other settings'
complete -c osp -n '__osp_in \'dataset build\'' -l 'dry-run' -d 'Show what would be made, and exit'
complete -c osp -n '__osp_in \'dataset build\'' -l 'json' -d 'One JSON object per line on stdout'
complete -c osp -n '__osp_in \'dataset build\'' -l 'quiet' -d 'Say nothing but errors'
complete -c osp -n '__osp_in \'dataset build\'' -s 'q' -d 'Say nothing but errors'
complete -c osp -n '__osp_in \'dataset build\'' -l 'debug' -d 'Show a traceback with an error'
complete -c osp -n '__osp_in \'dataset build\'' -l 'help' -d 'Show this message and exit'
complete -c osp -n '__osp_in \'dataset build\'' -s 'h' -d 'Show this message and exit'
complete -c osp -n '__osp_at \'dataset build\' 0' -f -a '(__osp_files \'\\\\.(?:png|jpg|jpeg|webp|gif|bmp|tif|tiff|avif|jp2|tga|ppm|mp4|mov|mkv|webm|avi|m4v|mpg|ts)\')'
